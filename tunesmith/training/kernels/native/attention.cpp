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

template <class E>
struct Tensors {
    long H, G, D;
    const E* q;
    long q_row;
    const E* k;
    long k_row;
    const E* v;
    long v_row;
    E* out;
    long out_row;
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
        queries_ = pieces.take<uint32_t>(QUERIES * query_step());
        scores_ = pieces.take<float>(std::max(SCORES / 4 + QUERIES * score_row(1), ROWS * score_row(keys)));
        sums_ = pieces.take<float>(QUERIES * ceil_to(x_.D, 16));
        return pieces.used();
    }

    void run(const Task& task) {
        const Sight sight(layout_, how_, task.segment);
        // Of all the segment's keys only those from `low` on that this task's queries see.
        const long low = sight.first_key(task.begin), high = sight.end_key(task.end - 1), n = high - low;
        gather(task, x_.k, x_.k_row, low, high);
        pack_transposed_in_panels(rows_.data(), n, x_.D, keys_);
        gather(task, x_.v, x_.v_row, low, high);
        pack_rows_in_panels(rows_.data(), n, x_.D, values_, words<E>(n), moved_);
        score_row_ = score_row(n);
        const long step = block_queries(n), heads = x_.H / x_.G;
        for (long head = task.group * heads; head < (task.group + 1) * heads; head++)
            for (long i = task.begin; i < task.end; i += step) block(task, sight, head, i, std::min(step, task.end - i), low, n);
    }

private:
    /// Floats from one query's scores to the next's: a line more than whole panels, so that they fall on different sets of the cache.
    static long score_row(long keys) { return ceil_to(keys, PANEL) + 16; }
    long query_step() const { return ceil_to(words<E>(x_.D), 16); }

    void gather(const Task& task, const E* x, long row, long low, long high) {
        rows_.clear();
        layout_.runs(task.segment, [&](long s, long key, long length) {
            for (long j = std::max(low, key); j < std::min(high, key + length); j++)
                rows_.push_back(x + (layout_.start[s] + j - key) * row + task.group * x_.D);
        });
    }

    /// Queries i ... i + m - 1 of one head. Keys are numbered from `low` on: of those there are n.
    void block(const Task& task, const Sight& sight, long head, long i, long m, long low, long n) {
        const long token = layout_.start[task.segment] + i, depth = words<E>(x_.D);
        moved_.clear();
        for (long r = 0; r < m; r++) moved_.push_back(x_.q + (token + r) * x_.q_row + head * x_.D);
        copy_rows(moved_.data(), m, x_.D, queries_, query_step(), KeepAll{}, 0, 0);
        const long end = sight.end_key(i + m - 1) - low;
        for (long j = sight.first_key(i) - low; j < end; j = floor_to(j, PANEL) + PANEL) {
            long panel = floor_to(j, PANEL), runs = runs_of(end - panel);
            long first = floor_to(std::max(0L, sight.first_query(low + panel) - i), 24 / runs);
            long last = std::min(m, sight.end_query(low + panel + runs * 16 - 1, i + m) - i);
            Left a{reinterpret_cast<char*>(queries_ + first * query_step()), query_step() * 4, 4};
            product<E, false>(int(runs), last - first, depth, a, keys_ + panel * depth, panel_step(n, panel),
                              scores_ + first * score_row_ + panel, score_row_);
        }
        float total[QUERIES];
        for (long r = 0; r < m; r++) {
            float* s = scores_ + r * score_row_;
            long from = floor_to(sight.first_key(i) - low, 16);
            x_.lse[(token + r) * x_.H + head] = softmax(s, sight.first_key(i + r) - low, sight.end_key(i + r) - low, from, ceil_to(end, 16), total[r]);
        }
        weigh(sight, i, m, low, n);
        for (long r = 0; r < m; r++) {
            Floats scale = all(1 / total[r]);
            E* to = x_.out + (token + r) * x_.out_row + head * x_.D;
            each16(x_.D, [&](long d, auto lanes) { store(to + d, load(sums_ + r * ceil_to(x_.D, 16) + d) * scale, lanes); });
        }
    }

    /// Turn scores into e^(score - largest) for keys [begin, end), in place in type E, and 0 in the rest of [from, to). Returns the
    /// logarithm of the scores' sum of powers; `total` is the sum of what was written, before rounding.
    float softmax(float* s, long begin, long end, long from, long to, float& total) const {
        float scale = how_.scale * LOG2E;
        if (how_.softcap > 0) {
            scale = how_.softcap * LOG2E;
            for (long j = floor_to(begin, 16); j < end; j += 16) store(s + j, tanh(load(s + j) * all(how_.scale / how_.softcap)));
        }
        Floats max = all(-INFINITY);
        for (long j = floor_to(begin, 16); j < end; j += 16) {
            Mask lanes = between(j, begin, end);
            max = _mm512_mask_max_ps(max, lanes, load(s + j), max);
        }
        const float shift = largest(max) * scale;
        Floats powers = all(0);
        E* out = reinterpret_cast<E*>(s);
        // Where E is shorter than a float, what is written lies before what is still to be read.
        for (long j = from; j < to; j += 16) {
            Mask lanes = between(j, begin, end);
            Floats x = fma(load(s + j), all(scale), all(-shift));
            Floats power = _mm512_maskz_mov_ps(lanes, per_word<E> == 1 ? exp2(x) : exp2_rough(x));
            powers += power;
            store(out + j, power);
        }
        total = sum(powers);
        return float((double(shift) + std::log2(double(total))) * double(LN2));
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
                    tile<E, true>(int(runs), a.at(0, first), a.row, a.step, values_ + d * depth + first * runs * 16, runs * 16, last - first,
                                  sums_ + r * columns + d, columns);
                }
        }
    }

    const Layout& layout_;
    const How& how_;
    const Tensors<E>& x_;
    uint32_t *keys_ = nullptr, *values_ = nullptr, *queries_ = nullptr;
    float *scores_ = nullptr, *sums_ = nullptr;
    long score_row_ = 0;
    std::vector<const E*> rows_, moved_;
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
                     {H, G, D, q, q_row, k, k_row, v, v_row, out, out_row, lse});
}

}  // namespace

EXPORT(attention)
