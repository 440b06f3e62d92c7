// out = softmax(scale q kᵀ) v within each segment and its ancestors, and the log-sum-exp of the scores.
//
// For each segment and key head the keys and values are packed once. Then, for each block of queries of each head, the scores with
// all the keys they see are computed, which fit the second-level cache; their exact softmax follows, and the product with the values.

#include <atomic>
#include <cmath>
#include <tuple>

#include "attention.h"

namespace {

/// Block of scores, in bytes, that is to stay in the second-level cache, and the most queries it has.
constexpr long SCORES = 512 * 1024, QUERIES = 96;

/// Words of keys that are summed over at a time, so that their values stay in the first-level cache.
constexpr long DEPTH = 128;

inline long block_queries(long keys) { return std::clamp(floor_to(SCORES / (4 * keys), ROWS), ROWS, QUERIES); }

/// Heads lie one behind the other in a row.
template <class E>
struct Tensors {
    long H, G, D;
    Rows<const E> q, k, v;
    Rows<E> out;
    float* lse;
};

template <class E>
class Forward {
public:
    Forward(const Layout& layout, const How& how, const Tensors<E>& x) : layout_(layout), how_(how), x_(x) {}

    /// Lay out memory for segments of up to so many keys. Returns how much of it.
    long take(char* data, long keys) {
        Pieces pieces(data);
        const long padded = ceil_to(keys, 16);
        keys_ = pieces.take<uint32_t>(words<E>(x_.D) * padded);
        values_ = pieces.take<uint32_t>(words<E>(padded) * ceil_to(x_.D, 16));
        queries_ = pieces.take<uint32_t>(QUERIES * ceil_to(words<E>(x_.D), 16));
        scores_ = pieces.take<float>(std::max(SCORES / 4 + QUERIES * score_row(1), ROWS * score_row(keys)));
        sums_ = pieces.take<float>(QUERIES * ceil_to(x_.D, 16));
        return pieces.used();
    }

    void run(const Task& task) {
        const Sight sight(layout_, how_, task.segment);
        // Of all the segment's keys only those from `low` on that this task's queries see.
        const long low = sight.first_key(task.begin), high = sight.end_key(task.end - 1), n = high - low;
        gather(task, x_.k, low, high);
        pack_transposed_in_panels(rows_, x_.D, keys_);
        gather(task, x_.v, low, high);
        pack_rows_in_panels(rows_, x_.D, values_);
        score_row_ = score_row(n);
        const long step = block_queries(n), heads = x_.H / x_.G;
        for (long i = task.begin; i < task.end; i += step)
            for (long head = task.group * heads; head < (task.group + 1) * heads; head++)
                block(task, sight, head, i, std::min(step, task.end - i), low, n);
    }

private:
    /// Floats from one query's scores to the next's: a line more than whole panels, so that they fall on different sets of the cache.
    static long score_row(long keys) { return ceil_to(keys, PANEL) + 16; }

    void gather(const Task& task, Rows<const E> x, long low, long high) {
        rows_.clear();
        layout_.runs(task.segment, [&](long s, long key, long length) {
            for (long j = std::max(low, key); j < std::min(high, key + length); j++)
                rows_.push_back(x.at(layout_.start[s] + j - key, task.group * x_.D));
        });
    }

    /// Queries i ... i + m - 1 of one head. Keys are numbered from `low` on: of those there are n.
    void block(const Task& task, const Sight& sight, long head, long i, long m, long low, long n) {
        const long token = layout_.start[task.segment] + i, depth = words<E>(x_.D), heads = x_.H / x_.G;
        const Left queries = left_rows(x_.q, token, m, head * x_.D, x_.D, layout_.tokens(), queries_);
        // Memory's latency passes while the scores are computed: where this block's sums go, and the next block's queries.
        prefetch(x_.out.at(token, head * x_.D), x_.out.row, m, x_.D);
        if ((head + 1) % heads) prefetch(x_.q.at(token, (head + 1) * x_.D), x_.q.row, m, x_.D);
        else prefetch(x_.q.at(token + m, task.group * heads * x_.D), x_.q.row, std::min(m, task.end - i - m), x_.D);
        const long end = sight.end_key(i + m - 1) - low;
        for (long j = floor_to(sight.first_key(i) - low, PANEL), width; j < end; j += width) {
            // Half panels where the last keys are not seen by all: less is computed in vain.
            const long panel = floor_to(j, PANEL);
            const bool whole = j == panel && sight.first_query(low + panel + PANEL - 1) <= i;
            width = std::min(whole ? PANEL : PANEL / 2, ceil_to(end, 16) - j);
            const long first = floor_to(std::max(0L, sight.first_query(low + j) - i), 24 / (width / 16));
            const long last = std::min(m, sight.end_query(low + j + width - 1, i + m) - i);
            const Left a{queries.at(first, 0), queries.row, queries.step};
            product<E, false>(int(width / 16), last - first, depth, a, keys_ + panel * depth + j - panel, panel_step(n, panel),
                              scores_ + first * score_row_ + j, score_row_);
        }
        softmax(sight, i, m, low, ceil_to(end, 16));
        for (long r = 0; r < m; r++) x_.lse[(token + r) * x_.H + head] = lse_[r];
        weigh(sight, i, m, low, n);
        for (long r = 0; r < m; r++) {
            Floats scale = all(1 / total_[r]);
            E* to = x_.out.at(token + r, head * x_.D);
            each16(x_.D, [&](long d, auto lanes) { store(to + d, load(sums_ + r * ceil_to(x_.D, 16) + d) * scale, lanes); });
        }
    }

    /// Turn the block's scores into e^(score - largest), in place in type E, and what a query does not see up to key `to` into 0.
    /// `total_` are the sums of what was written, before rounding, `lse_` the logarithms of the sums of e^score.
    void softmax(const Sight& sight, long i, long m, long low, long to) {
        const float scale = (how_.softcap > 0 ? how_.softcap : how_.scale) * LOG2E;
        const long from = floor_to(sight.first_key(i) - low, 16);
        // First all the maxima, so that one row need not wait for the one before.
        for (long r = 0; r < m; r++) {
            const long begin = sight.first_key(i + r) - low, end = sight.end_key(i + r) - low;
            if (how_.softcap > 0) cap(scores_ + r * score_row_, floor_to(begin, 16), end);
            shift_[r] = -scale * max(scores_ + r * score_row_, begin, end);
        }
        for (long r = 0; r < m; r++) {
            const long begin = sight.first_key(i + r) - low, end = sight.end_key(i + r) - low;
            total_[r] = powers(scores_ + r * score_row_, begin, end, from, to, scale, shift_[r]);
        }
        for (long r = 0; r < m; r += 16) store(lse_ + r, (log2(load(total_ + r)) - load(shift_ + r)) * all(LN2));
    }

    void cap(float* s, long begin, long end) const {
        for (long j = begin; j < end; j += 16) store(s + j, tanh(load(s + j) * all(how_.scale / how_.softcap)));
    }

    static float max(const float* s, long begin, long end) {
        Floats a = all(-INFINITY), b = a;
        long j = floor_to(begin, 16);
        for (; j < end && (j < begin || j + 32 > end); j += 16) a = _mm512_mask_max_ps(a, between(j, begin, end), load(s + j), a);
        for (; j + 32 <= end; j += 32) {
            a = _mm512_max_ps(load(s + j), a);
            b = _mm512_max_ps(load(s + j + 16), b);
        }
        for (; j < end; j += 16) a = _mm512_mask_max_ps(a, between(j, begin, end), load(s + j), a);
        return largest(_mm512_max_ps(a, b));
    }

    /// 2^(scale s + shift) for keys begin ... end - 1, and 0 for the rest of from ... to - 1. Where E is shorter than a float, what is
    /// written lies before what is still to be read.
    static float powers(float* s, long begin, long end, long from, long to, float scale, float shift) {
        E* out = reinterpret_cast<E*>(s);
        Floats a = all(0), b = a;
        auto power = [&](long j) {
            Floats x = fma(load(s + j), all(scale), all(shift));
            return exp2_for<E>(x);
        };
        auto edge = [&](long j) {
            Floats p = _mm512_maskz_mov_ps(between(j, begin, end), power(j));
            a += p;
            store(out + j, p);
        };
        long j = from;
        for (; j < floor_to(begin, 16); j += 16) store(out + j, all(0));
        for (; j < end && (j < begin || j + 32 > end); j += 16) edge(j);
        for (; j + 32 <= end; j += 32) {
            Floats p = power(j), q = power(j + 16);
            a += p;
            b += q;
            store(out + j, p);
            store(out + j + 16, q);
        }
        for (; j < end; j += 16) edge(j);
        for (; j < to; j += 16) store(out + j, all(0));
        return sum(a + b);
    }

    /// Sums of the values, weighed by what softmax wrote.
    void weigh(const Sight& sight, long i, long m, long low, long n) {
        const long columns = ceil_to(x_.D, 16), depth = words<E>(n);
        std::memset(sums_, 0, size_t(ceil_to(m, ROWS) * columns) * 4);
        for (long d = 0; d < x_.D; d += PANEL) {
            const long runs = runs_of(x_.D - d), rows = 24 / runs;
            for (long k = 0; k < depth; k += DEPTH)
                for (long r = 0; r < m; r += rows) {
                    long first = std::max(k, (sight.first_key(i + r) - low) / per_word<E>);
                    long last = std::min(k + DEPTH, words<E>(sight.end_key(std::min(i + m, i + r + rows) - 1) - low));
                    if (first >= last) continue;
                    Left a{reinterpret_cast<char*>(scores_ + r * score_row_), score_row_ * 4, 4};
                    const uint32_t* b = values_ + d * depth + first * runs * 16;
                    tile<E, true>(int(runs), a.at(0, first), a.row, a.step, b, runs * 16, last - first, sums_ + r * columns + d, columns);
                }
        }
    }

    const Layout& layout_;
    const How& how_;
    const Tensors<E>& x_;
    uint32_t *keys_ = nullptr, *values_ = nullptr, *queries_ = nullptr;
    float *scores_ = nullptr, *sums_ = nullptr;
    long score_row_ = 0;
    float shift_[QUERIES], total_[QUERIES], lse_[QUERIES];
    std::vector<const E*> rows_;
};

template <class E>
int attend(long threads, const Layout& layout, const How& how, const Tensors<E>& x) {
    const std::vector<Task> todo = tasks(layout, how, x.G, int(4 * threads));
    long keys = 0;
    for (const Task& task : todo) {
        Sight sight(layout, how, task.segment);
        keys = std::max(keys, sight.end_key(task.end - 1) - sight.first_key(task.begin));
    }
    const long bytes = Forward<E>(layout, how, x).take(nullptr, keys);
    Scratch own(threads * bytes);
    if (!own.ok()) return 1;
    // Who computes a task changes nothing about its result, so whoever is free takes the next.
    std::atomic<size_t> next{0};
    parallel(int(threads), [&](int thread) {
        Forward<E> forward(layout, how, x);
        forward.take(own.at(thread * bytes), keys);
        for (size_t task; (task = next++) < todo.size();) forward.run(todo[task]);
    });
    return 0;
}

template <class E>
int attention(long threads, long H, long G, long D, double scale, long causal, long window, double softcap, long segments,
              const int32_t* start, const int32_t* length, const int32_t* first_ancestor, const int32_t* ancestor, const E* q, long q_row,
              const E* k, long k_row, const E* v, long v_row, E* out, long out_row, float* lse) {
    return attend<E>(threads, {segments, start, length, first_ancestor, ancestor}, {float(scale), causal != 0, window, float(softcap)},
                     {H, G, D, {q, q_row}, {k, k_row}, {v, v_row}, {out, out_row}, lse});
}

}  // namespace

EXPORT(attention)
