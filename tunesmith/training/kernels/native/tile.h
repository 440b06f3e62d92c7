// The inner loop of every matrix product here, for matrices too small or too masked to hand to a library.
//
// Both types are multiplied as 32-bit *words*: a word is one float32, or two bfloat16 that lie next to each other along the
// dimension that is summed over. C[m, n] (+)= sum over k of A[m, k] . B[k, n], where A may have any strides (its words are
// broadcast one at a time) and B is packed: for each k a run of words, column by column (see pack.h).
#pragma once

#include "simd.h"

template <class E>
constexpr int per_word = 4 / int(sizeof(E));

/// Words of `n` elements.
template <class E>
constexpr long words(long n) {
    return (n + per_word<E> - 1) / per_word<E>;
}

/// c + a . b, lane by lane.
template <class E>
inline Floats multiply_add(Floats c, Words a, Words b) {
    if constexpr (per_word<E> == 1) return fma(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), c);
#ifdef __AVX512BF16__
    else return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#else
    else {
        const Words high = _mm512_set1_epi32(int(0xFFFF0000));
        auto first = [](Words w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); };
        auto second = [=](Words w) { return _mm512_castsi512_ps(_mm512_and_si512(w, high)); };
        return fma(second(a), second(b), fma(first(a), first(b), c));
    }
#endif
}

/// A left operand: the word (m, k) lies at data + m * row + k * step bytes.
struct Left {
    const char* data;
    long row, step;
    const char* at(long m, long k) const { return data + m * row + k * step; }
};

/// Registers hold 24 sums: RUNS runs of sixteen columns in 24 / RUNS rows. 12 would hide the latency of the multiplier; more let
/// a loaded word be used more often.
template <int RUNS>
constexpr int tile_rows = 24 / RUNS;

/// Rows up to which operands must be readable and results writable: a multiple of every tile's rows.
constexpr long ROWS = 24;

/// Fetches nothing.
struct NothingAhead {
    void fetch() {}
};

/// Fetches rows into the cache, a few lines with each word that is multiplied meanwhile. Rows that lie far apart the processor does
/// not foresee, and waiting for memory takes longer than computing with what it brings.
class Ahead {
public:
    /// n elements of each row, over about so many words; nothing if there are no rows.
    template <class E>
    Ahead(const E* x, long row, long num_rows, long n, long words)
        : next_(reinterpret_cast<const char*>(x)), row_(row * long(sizeof(E))), bytes_(n * long(sizeof(E))), rows_(num_rows) {
        lines_ = int((num_rows * (bytes_ / 64 + 1) + words - 1) / words);
    }
    void fetch() {
        for (int line = 0; line < lines_; line++) {
            _mm_prefetch(next_ + at_, _MM_HINT_T0);
            at_ += 64;
            if (at_ >= bytes_) next_row();
        }
    }

private:
    void next_row() {
        at_ = 0;
        next_ += row_;
        if (--rows_ <= 0) lines_ = 0;
    }
    const char* next_;
    long row_, bytes_, rows_, at_ = 0;
    int lines_;
};

template <class E, int RUNS, bool ADD, class Fetch>
[[gnu::noinline]] void tile(const char* a, long a_row, long a_step, const uint32_t* b, long b_step, long k, float* c, long c_row,
                            Fetch& fetch) {
    Fetch ahead = fetch;
    constexpr int M = tile_rows<RUNS>;
    Floats sums[M][RUNS];
#pragma GCC unroll 24
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < RUNS; n++) sums[m][n] = ADD ? load(c + m * c_row + n * 16) : all(0);
    for (; k > 0; k--, a += a_step, b += b_step) {
        ahead.fetch();
        Words right[RUNS];
#pragma GCC unroll 4
        for (int n = 0; n < RUNS; n++) right[n] = _mm512_loadu_si512(b + n * 16);
#pragma GCC unroll 24
        for (int m = 0; m < M; m++) {
            int word;
            std::memcpy(&word, a + m * a_row, 4);
            Words left = _mm512_set1_epi32(word);
#pragma GCC unroll 4
            for (int n = 0; n < RUNS; n++) sums[m][n] = multiply_add<E>(sums[m][n], left, right[n]);
        }
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < RUNS; n++) store(c + m * c_row + n * 16, sums[m][n]);
    fetch = ahead;
}

template <class E, bool ADD, class Fetch>
inline void tile(int runs, const char* a, long a_row, long a_step, const uint32_t* b, long b_step, long k, float* c, long c_row,
                 Fetch& fetch) {
    if (runs == 4) tile<E, 4, ADD>(a, a_row, a_step, b, b_step, k, c, c_row, fetch);
    else if (runs == 3) tile<E, 3, ADD>(a, a_row, a_step, b, b_step, k, c, c_row, fetch);
    else if (runs == 2) tile<E, 2, ADD>(a, a_row, a_step, b, b_step, k, c, c_row, fetch);
    else tile<E, 1, ADD>(a, a_row, a_step, b, b_step, k, c, c_row, fetch);
}

template <class E, bool ADD>
inline void tile(int runs, const char* a, long a_row, long a_step, const uint32_t* b, long b_step, long k, float* c, long c_row) {
    NothingAhead nothing;
    tile<E, ADD>(runs, a, a_row, a_step, b, b_step, k, c, c_row, nothing);
}

/// C[0 ... m, 16 runs columns] (+)= A B over words 0 ... k. Computes whole tiles: up to ceil(m, ROWS) rows are read and written.
template <class E, bool ADD, class Fetch>
inline void product(int runs, long m, long k, Left a, const uint32_t* b, long b_step, float* c, long c_row, Fetch& fetch) {
    long step = 24 / runs;
    for (long i = 0; i < m; i += step) tile<E, ADD>(runs, a.at(i, 0), a.row, a.step, b, b_step, k, c + i * c_row, c_row, fetch);
}
template <class E, bool ADD>
inline void product(int runs, long m, long k, Left a, const uint32_t* b, long b_step, float* c, long c_row) {
    NothingAhead nothing;
    product<E, ADD>(runs, m, k, a, b, b_step, c, c_row, nothing);
}
