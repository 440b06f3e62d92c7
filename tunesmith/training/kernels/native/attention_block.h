// A block of queries of one head times a block of keys, backwards.
//
// With P the probabilities, computed again from the log-sum-exp (Dao et al., 2022, appendix B.2):
//
//     dV = Pᵀ dO     dP = dO Vᵀ     dS = P (dP - rowsum(dO O))     dQ = scale dS K     dK = scale dSᵀ Q
//
// What is summed here of dK and dQ lacks the scale.
#pragma once

#include "attention.h"

/// Store as words that are summed over: one row's numbers in float32, two rows' in bfloat16.
inline void store_words(uint32_t* to, const Floats (&x)[1]) { store(reinterpret_cast<float*>(to), x[0]); }
inline void store_words(uint32_t* to, const Floats (&x)[2]) {
    Words low = _mm512_cvtepu16_epi32(narrow(x[0])), high = _mm512_cvtepu16_epi32(narrow(x[1]));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

template <class E>
class Block {
public:
    /// The most queries of a block, and keys: as many as let all operands stay in the second-level cache.
    static constexpr long QUERIES = 96;
    static long most_keys(long D) { return D <= 64 ? 256 : D <= 128 ? 128 : 64; }

    Block(const How& how, long D)
        : how_(how), D_(D), columns_(ceil_to(D, 16)), depth_(words<E>(D)), pair_step_(most_keys(D) + 16),
          row_step_(words<E>(most_keys(D)) + 16) {}

    /// Use this memory; without any only say how much.
    long take(char* data) {
        Pieces pieces(data);
        const long keys = most_keys(D_);
        for (uint32_t** columns : {&keys_, &values_}) *columns = pieces.take<uint32_t>(depth_ * keys);
        key_rows_ = pieces.take<uint32_t>(words<E>(keys) * columns_);
        for (float** sums : {&dk_, &dv_}) *sums = pieces.take<float>(ceil_to(keys, ROWS) * columns_);
        for (uint32_t** left : {&queries_, &douts_}) *left = pieces.take<uint32_t>(QUERIES * ceil_to(depth_, 16));
        for (uint32_t** rows : {&query_rows_, &dout_rows_}) *rows = pieces.take<uint32_t>(words<E>(QUERIES) * columns_);
        for (float** tile : {&scores_, &dprobs_}) *tile = pieces.take<float>(ROWS * PANEL);
        // A tile of keys may reach beyond the last one.
        for (uint32_t** pairs : {&probs_, &dscores_}) *pairs = pieces.take<uint32_t>(words<E>(QUERIES) * pair_step_ + ROWS);
        dscore_rows_ = pieces.take<uint32_t>(QUERIES * row_step_);
        for (float** vector : {&delta_, &shift_}) *vector = pieces.take<float>(QUERIES);
        return pieces.used();
    }

    /// Take n keys and values, of which the first is the segment's key `first`; from token and feature on. Their sums begin at 0.
    void set_keys(Rows<const E> k, Rows<const E> v, long token, long feature, long first, long n) {
        first_ = first;
        n_ = n;
        pack_transposed_in_panels(gather(v, token, feature, n), D_, values_);
        pack_transposed_in_panels(gather(k, token, feature, n), D_, keys_);
        pack_rows_in_panels(rows_, D_, key_rows_);
        for (float* sums : {dk_, dv_}) std::memset(sums, 0, size_t(ceil_to(n, ROWS) * columns_) * 4);
    }

    /// Take m queries, of which the first is the segment's query i, with what is known of their outputs; from token and feature on.
    /// `lse` is the first one's, and the next `heads` behind it.
    void set_queries(Rows<const E> q, Rows<const E> dout, Rows<const E> out, long token, long feature, const float* lse, long heads, long i,
                     long m, long tokens) {
        i_ = i;
        m_ = m;
        q_ = left_rows(q, token, m, feature, D_, tokens, queries_);
        dout_ = left_rows(dout, token, m, feature, D_, tokens, douts_);
        pack_rows_in_panels(gather(q, token, feature, m), D_, query_rows_);
        pack_rows_in_panels(gather(dout, token, feature, m), D_, dout_rows_);
        for (long r = 0; r < m; r++) {
            const E* o = out.at(token + r, feature);
            Floats products = all(0);
            each16(D_, [&](long d, auto lanes) { products = fma(load(o + d, lanes), load(rows_[size_t(r)] + d, lanes), products); });
            delta_[r] = sum(products);
            shift_[r] = -lse[r * heads] * LOG2E;
        }
        for (long r = m; r < ceil_to(m, ROWS); r++) delta_[r] = shift_[r] = 0;
    }

    /// Add what the queries say about the keys to the keys' sums, and what the keys say about the queries to `dq`.
    void run(const Sight& sight, float* dq) {
        probabilities(sight);
        add_dkv(sight);
        add_dq(sight, dq);
    }

    const float* dk(long key) const { return dk_ + key * columns_; }
    const float* dv(long key) const { return dv_ + key * columns_; }

private:
    const std::vector<const E*>& gather(Rows<const E> x, long token, long feature, long n) {
        rows_.resize(size_t(n));
        point(x.at(token, feature), x.row, n, rows_.data());
        return rows_;
    }

    /// Compute P and dS as far as 24 queries by a panel of keys see anything.
    void probabilities(const Sight& sight) {
        // Tiles of keys reach from one panel into the next, of which other queries may be the first or last to be computed.
        if (sight.first_query(first_ + n_ - 1) > i_ || sight.end_query(first_, i_ + m_) < i_ + m_)
            for (uint32_t* pairs : {probs_, dscores_}) std::memset(pairs, 0, size_t(words<E>(m_) * pair_step_) * 4);
        for (long j = 0, width; j < n_; j += width) {
            // Half panels where the last keys are not seen by all: less is computed in vain.
            const long panel = floor_to(j, PANEL), step = panel_step(n_, panel);
            const bool whole = j == panel && sight.first_query(first_ + panel + PANEL - 1) <= i_;
            width = std::min(whole ? PANEL : PANEL / 2, panel + step - j);
            const long begin = floor_to(std::max(0L, sight.first_query(first_ + j) - i_), ROWS);
            const long end = std::min(m_, sight.end_query(first_ + std::min(n_, j + width) - 1, i_ + m_) - i_);
            for (long r = begin; r < end; r += ROWS) {
                const Left q{q_.at(r, 0), q_.row, 4}, dout{dout_.at(r, 0), dout_.row, 4};
                const long right = panel * depth_ + j - panel;
                product<E, false>(int(width / 16), std::min(ROWS, m_ - r), depth_, q, keys_ + right, step, scores_, PANEL);
                product<E, false>(int(width / 16), std::min(ROWS, m_ - r), depth_, dout, values_ + right, step, dprobs_, PANEL);
                const bool all_seen = sight.first_key(i_ + r + ROWS - 1) <= first_ + j && sight.end_key(i_ + r) >= first_ + j + width &&
                                      r + ROWS <= m_ && j + width <= n_;
                auto rows = how_.softcap > 0 ? &Block::differentiate<true, true>
                            : all_seen       ? &Block::differentiate<false, false>
                                             : &Block::differentiate<true, false>;
                (this->*rows)(sight, r, j, width);
            }
        }
    }

    /// The same for queries from r on whose products are in `scores_` and `dprobs_`, and so many keys from j on.
    template <bool MASKED, bool CAPPED>
    void differentiate(const Sight& sight, long r, long j, long width) {
        const Floats scale = all((CAPPED ? how_.softcap : how_.scale) * LOG2E), inner = all(CAPPED ? how_.scale / how_.softcap : 0);
        for (long row = 0; row < ROWS && r + row < m_; row += per_word<E>) {
            const float *scores = scores_ + row * PANEL, *dprobs = dprobs_ + row * PANEL;
            const long query = r + row, pair = query / per_word<E> * pair_step_ + j;
            uint32_t *probs = probs_ + pair, *dscores = dscores_ + pair;
            E* rows[per_word<E>];
            Floats shift[per_word<E>], delta[per_word<E>];
            long begins[per_word<E>], ends[per_word<E>];
            for (int e = 0; e < per_word<E>; e++) {
                rows[e] = reinterpret_cast<E*>(dscore_rows_ + (query + e) * row_step_) + j;
                shift[e] = all(shift_[query + e]);
                delta[e] = all(delta_[query + e]);
                begins[e] = sight.first_key(i_ + query + e) - first_ - j;
                ends[e] = query + e < m_ ? std::min(n_, sight.end_key(i_ + query + e) - first_) - j : 0;
            }
            for (long c = 0; c < width; c += 16) {
                Floats p[per_word<E>], ds[per_word<E>];
#pragma GCC unroll 2
                for (int e = 0; e < per_word<E>; e++) {
                    Floats x = load(scores + e * PANEL + c);
                    if (CAPPED) x = tanh(x * inner);
                    const Floats power = fma(x, scale, shift[e]);
                    p[e] = exp2_for<E>(power);
                    ds[e] = p[e] * (load(dprobs + e * PANEL + c) - delta[e]);
                    if (CAPPED) ds[e] = ds[e] * (all(1.0f) - x * x);
                    if (MASKED) {
                        const Mask lanes = between(c, begins[e], ends[e]);
                        p[e] = only(p[e], lanes);
                        ds[e] = only(ds[e], lanes);
                    }
                    store(rows[e] + c, ds[e]);
                }
                store_words(probs + c, p);
                store_words(dscores + c, ds);
            }
        }
    }

    /// dV += Pᵀ dO and dK += dSᵀ Q.
    void add_dkv(const Sight& sight) {
        for (long d = 0; d < D_; d += PANEL) {
            const long runs = runs_of(D_ - d), rows = 24 / runs, panel = d * words<E>(m_);
            for (long j = 0; j < n_; j += rows) {
                const long begin = std::max(0L, sight.first_query(first_ + j) - i_) / per_word<E>;
                const long last = std::min(n_, j + rows) - 1;
                const long end = words<E>(std::min(m_, sight.end_query(first_ + last, i_ + m_) - i_));
                if (begin >= end) continue;
                const long left = begin * pair_step_ + j, right = panel + begin * runs * 16, to = j * columns_ + d;
                auto add = [&](const uint32_t* pairs, const uint32_t* packed, float* sums) {
                    const char* a = reinterpret_cast<const char*>(pairs + left);
                    tile<E, true>(int(runs), a, 4, pair_step_ * 4, packed + right, runs * 16, end - begin, sums + to, columns_);
                };
                add(probs_, dout_rows_, dv_);
                add(dscores_, query_rows_, dk_);
            }
        }
    }

    /// dQ += dS K.
    void add_dq(const Sight& sight, float* dq) {
        for (long d = 0; d < D_; d += PANEL) {
            const long runs = runs_of(D_ - d), rows = 24 / runs, panel = d * words<E>(n_);
            for (long r = 0; r < m_; r += rows) {
                const long begin = std::max(0L, sight.first_key(i_ + r) - first_) / per_word<E>;
                const long end = words<E>(std::min(n_, sight.end_key(i_ + std::min(m_, r + rows) - 1) - first_));
                if (begin >= end) continue;
                Left a{reinterpret_cast<char*>(dscore_rows_ + r * row_step_), row_step_ * 4, 4};
                tile<E, true>(int(runs), a.at(0, begin), a.row, a.step, key_rows_ + panel + begin * runs * 16, runs * 16, end - begin,
                              dq + r * columns_ + d, columns_);
            }
        }
    }

    const How& how_;
    const long D_, columns_, depth_, pair_step_, row_step_;
    long first_ = 0, n_ = 0, i_ = 0, m_ = 0;
    uint32_t *keys_ = nullptr, *values_ = nullptr, *key_rows_ = nullptr;
    uint32_t *queries_ = nullptr, *douts_ = nullptr, *query_rows_ = nullptr, *dout_rows_ = nullptr;
    uint32_t *probs_ = nullptr, *dscores_ = nullptr, *dscore_rows_ = nullptr;
    float *dk_ = nullptr, *dv_ = nullptr, *scores_ = nullptr, *dprobs_ = nullptr, *delta_ = nullptr, *shift_ = nullptr;
    Left q_{}, dout_{};
    std::vector<const E*> rows_;
};
