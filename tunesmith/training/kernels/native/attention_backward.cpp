// Gradients of attention (Dao et al., 2022, appendix B.2). With P the probabilities, computed again from the log-sum-exp:
//
//     dV = Pᵀ dO     dP = dO Vᵀ     dS = P (dP - rowsum(dO O))     dQ = scale dS K     dK = scale dSᵀ Q
//
// Blocks of keys times blocks of queries, so that all operands of a block stay in the second-level cache. A segment that several
// tasks say something about (it is an ancestor, or its queries are divided) has one sum a thread; which thread does which task
// is fixed, and so is the order of adding up: the same bits come out each time.

#include <cmath>
#include <tuple>

#include "attention.h"

namespace {

constexpr long QUERIES = 96;

template <class E>
struct Tensors {
    long H, G, D;
    const E* dout;
    long dout_row;
    const E* q;
    long q_row;
    const E* k;
    long k_row;
    const E* v;
    long v_row;
    const E* out;
    long out_row;
    const float* lse;
    E* dq;
    long dq_row;
    E* dk;
    long dk_row;
    E* dv;
    long dv_row;
};

/// Where segments that several tasks say something about lie in each thread's sums: token `first[s]`, -1 for the others.
struct Shared {
    std::vector<long> first;
    long tokens = 0;

    Shared(const Layout& layout, const std::vector<Task>& tasks) : first(size_t(layout.segments), -1) {
        for (long a = 0; a < layout.first_ancestor[layout.segments]; a++) add(layout, layout.ancestor[a]);
        for (const Task& task : tasks)
            if (!task.whole) add(layout, task.segment);
    }
    void add(const Layout& layout, long s) {
        if (first[size_t(s)] >= 0) return;
        first[size_t(s)] = tokens;
        tokens += layout.length[s];
    }
};

/// The words of two rows' numbers, in bfloat16.
inline Words pair_up(Floats even, Floats odd) {
    Words low = _mm512_cvtepu16_epi32(narrow(even)), high = _mm512_cvtepu16_epi32(narrow(odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

template <class E>
class Backward {
public:
    Backward(const Layout& layout, const How& how, const Tensors<E>& x, const Shared& shared)
        : layout_(layout), how_(how), x_(x), shared_(shared), columns_(ceil_to(x.D, 16)), depth_(words<E>(x.D)),
          block_keys_(x.D <= 64 ? 256 : x.D <= 128 ? 128 : 64), pair_step_(block_keys_ + 16), row_step_(words<E>(block_keys_) + 16) {}

    /// Lay out memory for tasks of up to so many queries. Returns how much of it.
    long take(char* data, long queries) {
        Pieces pieces(data);
        for (uint32_t** keys : {&keys_, &values_}) *keys = pieces.take<uint32_t>(depth_ * block_keys_);
        key_rows_ = pieces.take<uint32_t>(words<E>(block_keys_) * columns_);
        for (float** sums : {&dk_, &dv_}) *sums = pieces.take<float>(ceil_to(block_keys_, ROWS) * columns_);
        for (uint32_t** left : {&queries_, &douts_}) *left = pieces.take<uint32_t>(QUERIES * query_step());
        for (uint32_t** rows : {&query_rows_, &dout_rows_}) *rows = pieces.take<uint32_t>(words<E>(QUERIES) * columns_);
        for (float** tile : {&scores_, &dprobs_}) *tile = pieces.take<float>(ROWS * PANEL);
        // A tile of keys may reach beyond the last one.
        for (uint32_t** pairs : {&probs_, &dscores_}) *pairs = pieces.take<uint32_t>(words<E>(QUERIES) * pair_step_ + ROWS);
        dscore_rows_ = pieces.take<uint32_t>(QUERIES * row_step_);
        for (float** vector : {&delta_, &shift_}) *vector = pieces.take<float>(QUERIES);
        dq_ = pieces.take<float>(x_.H / x_.G * ceil_to(queries, ROWS) * columns_);
        dshared_ = pieces.take<float>(2 * shared_.tokens * x_.G * x_.D);
        if (data) std::memset(dshared_, 0, size_t(2 * shared_.tokens * x_.G * x_.D) * 4);
        return pieces.used();
    }

    void run(const Task& task) {
        const Sight sight(layout_, how_, task.segment);
        const long heads = x_.H / x_.G, queries = task.end - task.begin;
        std::memset(dq_, 0, size_t(heads * ceil_to(queries, ROWS) * columns_) * 4);
        layout_.runs(task.segment, [&](long s, long key, long length) {
            long low = std::max(key, sight.first_key(task.begin)), high = std::min(key + length, sight.end_key(task.end - 1));
            for (long j = low; j < high; j += block_keys_) keys(task, sight, s, j - key, j, std::min(block_keys_, high - j));
        });
        const long token = layout_.start[task.segment] + task.begin;
        for (long h = 0; h < heads; h++)
            for (long r = 0; r < queries; r++)
                write(x_.dq + (token + r) * x_.dq_row + (task.group * heads + h) * x_.D, dq(h, r, queries), how_.scale);
    }

    /// What this thread has to say about a token's key (0) or value (1) of a shared segment.
    float* shared(int which, long token, long group) const {
        return dshared_ + ((which * shared_.tokens + token) * x_.G + group) * x_.D;
    }

private:
    long query_step() const { return ceil_to(depth_, 16); }
    float* dq(long head, long query, long queries) const { return dq_ + (head * ceil_to(queries, ROWS) + query) * columns_; }

    void write(E* to, const float* from, float scale) const {
        each16(x_.D, [&](long d, auto lanes) { store(to + d, load(from + d) * all(scale), lanes); });
    }

    void gather(const E* x, long row, long n) {
        rows_.clear();
        for (long j = 0; j < n; j++) rows_.push_back(x + j * row);
    }

    /// All that the task's queries say about n keys, of which the first is the segment s's token `offset` and key `first`.
    void keys(const Task& task, const Sight& sight, long s, long offset, long first, long n) {
        const long token = layout_.start[s] + offset, feature = task.group * x_.D;
        gather(x_.v + token * x_.v_row + feature, x_.v_row, n);
        pack_transposed_in_panels(rows_.data(), n, x_.D, values_);
        gather(x_.k + token * x_.k_row + feature, x_.k_row, n);
        pack_transposed_in_panels(rows_.data(), n, x_.D, keys_);
        pack_rows_in_panels(rows_.data(), n, x_.D, key_rows_, words<E>(n), moved_);
        for (float* sums : {dk_, dv_}) std::memset(sums, 0, size_t(ceil_to(n, ROWS) * columns_) * 4);

        const long heads = x_.H / x_.G;
        const long begin = task.begin + floor_to(std::max(0L, sight.first_query(first) - task.begin), ROWS);
        // Whole tiles, so that what a tile computes beyond a block's end falls behind the task's last query.
        const long end = std::min(task.end, task.begin + ceil_to(sight.end_query(first + n - 1, task.end) - task.begin, ROWS));
        for (long head = 0; head < heads; head++)
            for (long i = begin; i < end; i += QUERIES) {
                queries(task, task.group * heads + head, i, std::min(QUERIES, end - i));
                probabilities(sight, i, std::min(QUERIES, end - i), first, n);
                add_dkv(sight, i, std::min(QUERIES, end - i), first, n);
                add_dq(sight, i, std::min(QUERIES, end - i), first, n, dq(head, i - task.begin, task.end - task.begin));
            }

        const long shared = shared_.first[size_t(s)];
        for (long j = 0; j < n; j++) {
            if (shared < 0) {
                write(x_.dk + (token + j) * x_.dk_row + feature, dk_ + j * columns_, how_.scale);
                write(x_.dv + (token + j) * x_.dv_row + feature, dv_ + j * columns_, 1);
                continue;
            }
            add(Backward::shared(0, shared + offset + j, task.group), dk_ + j * columns_);
            add(Backward::shared(1, shared + offset + j, task.group), dv_ + j * columns_);
        }
    }

    void add(float* to, const float* from) const {
        each16(x_.D, [&](long d, auto lanes) { store(to + d, load(to + d, lanes) + load(from + d, lanes), lanes); });
    }

    /// Pack m queries of a head and their outputs' gradients both ways; delta = rowsum(dO O).
    void queries(const Task& task, long head, long i, long m) {
        const long token = layout_.start[task.segment] + i, feature = head * x_.D;
        gather(x_.q + token * x_.q_row + feature, x_.q_row, m);
        copy_rows(rows_.data(), m, x_.D, queries_, query_step(), KeepAll{}, 0, 0);
        pack_rows_in_panels(rows_.data(), m, x_.D, query_rows_, words<E>(m), moved_);
        gather(x_.dout + token * x_.dout_row + feature, x_.dout_row, m);
        copy_rows(rows_.data(), m, x_.D, douts_, query_step(), KeepAll{}, 0, 0);
        pack_rows_in_panels(rows_.data(), m, x_.D, dout_rows_, words<E>(m), moved_);
        for (long r = 0; r < m; r++) {
            const E* out = x_.out + (token + r) * x_.out_row + feature;
            Floats products = all(0);
            each16(x_.D, [&](long d, auto lanes) { products = fma(load(out + d, lanes), load(rows_[size_t(r)] + d, lanes), products); });
            delta_[r] = sum(products);
            shift_[r] = -x_.lse[(token + r) * x_.H + head] * LOG2E;
        }
        for (long r = m; r < ceil_to(m, ROWS); r++) delta_[r] = shift_[r] = 0;
    }

    /// Compute P and dS of queries i ... i + m - 1 and n keys from `first` on, as far as 24 queries by 64 keys see anything.
    void probabilities(const Sight& sight, long i, long m, long first, long n) {
        // Tiles of keys reach from one panel into the next, of which other queries may be the first or last to be computed.
        if (sight.first_query(first + n - 1) > i || sight.end_query(first, i + m) < i + m)
            for (uint32_t* pairs : {probs_, dscores_}) std::memset(pairs, 0, size_t(words<E>(m) * pair_step_) * 4);
        for (long j = 0; j < n; j += PANEL) {
            const long step = panel_step(n, j), runs = step / 16;
            const long begin = floor_to(std::max(0L, sight.first_query(first + j) - i), ROWS);
            const long end = std::min(m, sight.end_query(first + std::min(n, j + PANEL) - 1, i + m) - i);
            for (long r = begin; r < end; r += ROWS) {
                Left q{reinterpret_cast<char*>(queries_ + r * query_step()), query_step() * 4, 4};
                Left dout{reinterpret_cast<char*>(douts_ + r * query_step()), query_step() * 4, 4};
                product<E, false>(int(runs), std::min(ROWS, m - r), depth_, q, keys_ + j * depth_, step, scores_, PANEL);
                product<E, false>(int(runs), std::min(ROWS, m - r), depth_, dout, values_ + j * depth_, step, dprobs_, PANEL);
                for (long row = 0; row < ROWS && r + row < ceil_to(m, 2); row += per_word<E>)
                    for (long c = 0; c < step; c += 16) differentiate(sight, i, m, r, row, first, n, j + c, c);
            }
        }
    }

    /// The same for one query (bfloat16: two) and sixteen keys.
    void differentiate(const Sight& sight, long i, long m, long r, long row, long first, long n, long j, long c) {
        Floats p[per_word<E>], ds[per_word<E>];
        for (int e = 0; e < per_word<E>; e++) {
            const long query = r + row + e;
            const long end = query < m ? std::min(n, sight.end_key(i + query) - first) : 0;
            const Mask lanes = between(j, sight.first_key(i + query) - first, end);
            Floats score = load(scores_ + (row + e) * PANEL + c), dprob = load(dprobs_ + (row + e) * PANEL + c);
            Floats x, slope = all(1.0f);
            if (how_.softcap > 0) {
                Floats t = tanh(score * all(how_.scale / how_.softcap));
                slope = all(1.0f) - t * t;
                x = fma(t, all(how_.softcap * LOG2E), all(shift_[query]));
            } else {
                x = fma(score, all(how_.scale * LOG2E), all(shift_[query]));
            }
            p[e] = _mm512_maskz_mov_ps(lanes, per_word<E> == 1 ? exp2(x) : exp2_rough(x));
            ds[e] = _mm512_maskz_mul_ps(lanes, p[e] * slope, dprob - all(delta_[query]));
            store(reinterpret_cast<E*>(dscore_rows_ + query * row_step_) + j, ds[e]);
        }
        const long pair = (r + row) / per_word<E> * pair_step_ + j;
        if constexpr (per_word<E> == 1) {
            store(reinterpret_cast<float*>(probs_ + pair), p[0]);
            store(reinterpret_cast<float*>(dscores_ + pair), ds[0]);
        } else {
            _mm512_storeu_si512(probs_ + pair, pair_up(p[0], p[1]));
            _mm512_storeu_si512(dscores_ + pair, pair_up(ds[0], ds[1]));
        }
    }

    /// dV += Pᵀ dO and dK += dSᵀ Q.
    void add_dkv(const Sight& sight, long i, long m, long first, long n) {
        for (long d = 0; d < x_.D; d += PANEL) {
            const long runs = runs_of(x_.D - d), rows = 24 / runs, panel = d * words<E>(m);
            for (long j = 0; j < n; j += rows) {
                const long begin = std::max(0L, sight.first_query(first + j) - i) / per_word<E>;
                const long last = std::min(n, j + rows) - 1;
                const long end = words<E>(std::min(m, sight.end_query(first + last, i + m) - i));
                if (begin >= end) continue;
                const long at = begin * pair_step_ + j, right = panel + begin * runs * 16;
                auto words_at = [&](uint32_t* pairs) { return reinterpret_cast<char*>(pairs + at); };
                tile<E, true>(int(runs), words_at(probs_), 4, pair_step_ * 4, dout_rows_ + right, runs * 16, end - begin, dv_ + j * columns_ + d, columns_);
                tile<E, true>(int(runs), words_at(dscores_), 4, pair_step_ * 4, query_rows_ + right, runs * 16, end - begin, dk_ + j * columns_ + d, columns_);
            }
        }
    }

    /// dQ += dS K.
    void add_dq(const Sight& sight, long i, long m, long first, long n, float* dq) {
        for (long d = 0; d < x_.D; d += PANEL) {
            const long runs = runs_of(x_.D - d), rows = 24 / runs, panel = d * words<E>(n);
            for (long r = 0; r < m; r += rows) {
                const long begin = std::max(0L, sight.first_key(i + r) - first) / per_word<E>;
                const long end = words<E>(std::min(n, sight.end_key(i + std::min(m, r + rows) - 1) - first));
                if (begin >= end) continue;
                Left a{reinterpret_cast<char*>(dscore_rows_ + r * row_step_), row_step_ * 4, 4};
                tile<E, true>(int(runs), a.at(0, begin), a.row, a.step, key_rows_ + panel + begin * runs * 16, runs * 16, end - begin,
                              dq + r * columns_ + d, columns_);
            }
        }
    }

    const Layout& layout_;
    const How& how_;
    const Tensors<E>& x_;
    const Shared& shared_;
    const long columns_, depth_, block_keys_, pair_step_, row_step_;
    uint32_t *keys_ = nullptr, *values_ = nullptr, *key_rows_ = nullptr;
    uint32_t *queries_ = nullptr, *douts_ = nullptr, *query_rows_ = nullptr, *dout_rows_ = nullptr;
    uint32_t *probs_ = nullptr, *dscores_ = nullptr, *dscore_rows_ = nullptr;
    float *dk_ = nullptr, *dv_ = nullptr, *dq_ = nullptr, *dshared_ = nullptr;
    float *scores_ = nullptr, *dprobs_ = nullptr, *delta_ = nullptr, *shift_ = nullptr;
    std::vector<const E*> rows_, moved_;
};

/// Give each task to the thread that has least to do, the dearest first.
std::vector<std::vector<Task>> assign(const std::vector<Task>& tasks, int threads) {
    std::vector<std::vector<Task>> lists{size_t(threads)};
    std::vector<double> load(size_t(threads), 0.0);
    for (const Task& task : tasks) {
        size_t least = size_t(std::min_element(load.begin(), load.end()) - load.begin());
        lists[least].push_back(task);
        load[least] += task.cost;
    }
    return lists;
}

template <class E>
int differentiate(long threads, const Layout& layout, const How& how, const Tensors<E>& x) {
    const std::vector<Task> todo = tasks(layout, how, x.G, int(2 * threads));
    const auto lists = assign(todo, int(threads));
    const Shared shared(layout, todo);
    long queries = 0;
    for (const Task& task : todo) queries = std::max(queries, task.end - task.begin);
    std::vector<Backward<E>> workers(size_t(threads), Backward<E>(layout, how, x, shared));
    const long bytes = workers[0].take(nullptr, queries);
    Scratch own(threads * bytes);
    if (!own.ok()) return 1;
    parallel(int(threads), [&](int thread) {
        workers[size_t(thread)].take(own.at(thread * bytes), queries);
        for (const Task& task : lists[size_t(thread)]) workers[size_t(thread)].run(task);
    });
    parallel_range(int(threads), shared.tokens ? layout.segments : 0, [&](long begin, long end) {
        for (long s = begin; s < end; s++)
            for (long t = 0; shared.first[size_t(s)] >= 0 && t < layout.length[s]; t++)
                for (long g = 0; g < x.G; g++)
                    for (int which = 0; which < 2; which++)
                        each16(x.D, [&](long d, auto lanes) {
                            Floats total = all(0);
                            for (const auto& worker : workers) total += load(worker.shared(which, shared.first[size_t(s)] + t, g) + d, lanes);
                            E* to = which == 0 ? x.dk + (layout.start[s] + t) * x.dk_row : x.dv + (layout.start[s] + t) * x.dv_row;
                            store(to + g * x.D + d, total * all(which == 0 ? how.scale : 1.0f), lanes);
                        });
    });
    return 0;
}

template <class E>
int attention_backward(long threads, long H, long G, long D, double scale, long causal, long window, double softcap, long segments,
                       const int32_t* start, const int32_t* length, const int32_t* first_ancestor, const int32_t* ancestor,
                       const E* dout, long dout_row, const E* q, long q_row, const E* k, long k_row, const E* v, long v_row,
                       const E* out, long out_row, const float* lse, E* dq, long dq_row, E* dk, long dk_row, E* dv, long dv_row) {
    return differentiate<E>(threads, {segments, start, length, first_ancestor, ancestor},
                            {float(scale), causal != 0, window, float(softcap)},
                            {H, G, D, dout, dout_row, q, q_row, k, k_row, v, v_row, out, out_row, lse, dq, dq_row, dk, dk_row, dv, dv_row});
}

}  // namespace

EXPORT(attention_backward)
