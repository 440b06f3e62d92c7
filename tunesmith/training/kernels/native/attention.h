// What the forward and the backward pass of attention share: which keys a query sees, and how the work is divided.
//
// A segment's keys are numbered from 0: first its ancestors' tokens, outermost first, then its own. With `depth` tokens of
// ancestors, query i of the segment is itself key depth + i.
#pragma once

#include <algorithm>
#include <vector>

#include "pack.h"

struct Layout {
    long segments;
    const int32_t *start, *length, *first_ancestor, *ancestor;

    long tokens() const {
        long last = segments - 1;
        return segments ? start[last] + length[last] : 0;
    }

    long depth(long s) const {
        long tokens = 0;
        for (long a = first_ancestor[s]; a < first_ancestor[s + 1]; a++) tokens += length[ancestor[a]];
        return tokens;
    }

    /// Call run(token, first key, number of keys) for each ancestor of s and then s itself.
    template <class Run>
    void runs(long s, const Run& run) const {
        long key = 0;
        for (long a = first_ancestor[s]; a <= first_ancestor[s + 1]; a++) {
            long which = a < first_ancestor[s + 1] ? ancestor[a] : s;
            run(which, key, length[which]);
            key += length[which];
        }
    }
};

struct How {
    float scale;
    bool causal;
    long window;    // 0: none
    float softcap;  // 0: none
};

/// Which keys the queries of one segment see.
struct Sight {
    long depth, keys;
    bool causal;
    long window;

    Sight(const Layout& layout, const How& how, long s)
        : depth(layout.depth(s)), keys(depth + layout.length[s]), causal(how.causal), window(how.window) {}

    long first_key(long i) const { return window ? std::max(0L, depth + i - window + 1) : 0; }
    long end_key(long i) const { return causal ? depth + i + 1 : keys; }
    /// The first query that sees key j, and one behind the last.
    long first_query(long j) const { return causal ? std::max(0L, j - depth) : 0; }
    long end_query(long j, long queries) const { return window ? std::min(queries, std::max(0L, j + window - depth)) : queries; }
};

/// Queries begin ... end - 1 of a segment, of all the heads that share a key head.
struct Task {
    long segment, group, begin, end;
    double cost;
    bool whole;  // all of the segment's queries
};

/// Divide all segments and key heads into tasks, none of more than about 1 / `least` of the whole; the dearest first.
inline std::vector<Task> tasks(const Layout& layout, const How& how, long groups, int least) {
    std::vector<Task> whole, cut;
    double total = 0;
    for (long s = 0; s < layout.segments; s++) {
        if (!layout.length[s]) continue;
        Sight sight(layout, how, s);
        double cost = double(sight.keys);
        for (long i = 0; i < layout.length[s]; i++) cost += double(sight.end_key(i) - sight.first_key(i));
        total += cost * double(groups);
        whole.push_back({s, 0, 0, layout.length[s], cost, true});
    }
    for (const Task& task : whole) {
        long pieces = 1 + long(task.cost * least / total);
        long queries = ceil_to((task.end + pieces - 1) / pieces, 4 * ROWS);
        for (long begin = 0; begin < task.end; begin += queries) {
            long end = std::min(task.end, begin + queries);
            double cost = task.cost * double(end - begin) / double(task.end) * (how.causal ? double(begin + end) / double(task.end) : 1);
            for (long g = 0; g < groups; g++) cut.push_back({task.segment, g, begin, end, cost, begin == 0 && end == task.end});
        }
    }
    std::stable_sort(cut.begin(), cut.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
    return cut;
}

/// Softmax and matrix products work on panels of this many keys or features, at most.
constexpr long PANEL = 64;

inline int runs_of(long columns) { return int((std::min(columns, PANEL) + 15) / 16); }

/// Operands in panels: panel p holds columns 64 p up to 64 p + 63, for each k one behind the other.
inline long panel_step(long columns, long n) { return runs_of(columns - n) * 16; }

/// Pack rows that are summed over, in panels of columns; every panel has words<E>(rows.size()) words of each.
template <class E>
inline void pack_rows_in_panels(const std::vector<const E*>& rows, long num_columns, uint32_t* out) {
    std::vector<const E*> moved = rows;
    const long num_rows = long(rows.size()), depth = words<E>(num_rows);
    for (long n = 0; n < num_columns; n += PANEL) {
        const long width = std::min(PANEL, num_columns - n);
        pack_rows(moved.data(), num_rows, width, out + n * depth, panel_step(num_columns, n), KeepAll{}, 0, 0);
        for (const E*& row : moved) row += PANEL;
    }
}

/// Pack rows that become columns, in panels.
template <class E>
inline void pack_transposed_in_panels(const std::vector<const E*>& rows, long num_elements, uint32_t* out) {
    const long num_rows = long(rows.size()), depth = words<E>(num_elements);
    for (long n = 0; n < num_rows; n += PANEL)
        pack_transposed(rows.data() + n, std::min(PANEL, num_rows - n), num_elements, out + n * depth, panel_step(num_rows, n));
}

/// Rows t ... t + m - 1 as a left operand: where they lie, or copied if whole tiles would reach beyond the last of all rows.
template <class E>
inline Left left_rows(Rows<const E> x, long t, long m, long feature, long num_elements, long all_rows, uint32_t* copy) {
    if (t + ceil_to(m, ROWS) <= all_rows) return {reinterpret_cast<const char*>(x.at(t, feature)), x.row * long(sizeof(E)), 4};
    const long step = ceil_to(words<E>(num_elements), 16);
    std::vector<const E*> rows(static_cast<size_t>(m));
    point(x.at(t, feature), x.row, m, rows.data());
    copy_rows(rows.data(), m, num_elements, copy, step, KeepAll{}, 0, 0);
    return {reinterpret_cast<const char*>(copy), step * 4, 4};
}

/// Lanes j ... j + 15 that lie in [begin, end).
inline Mask between(long j, long begin, long end) {
    Mask lanes = j >= end ? Mask(0) : first_lanes(end - j);
    return j >= begin ? lanes : Mask(lanes & ~(begin - j >= 16 ? Mask(0xFFFF) : first_lanes(begin - j)));
}
