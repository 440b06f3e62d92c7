// Lays matrices out as the operands of tile.h.
//
// Matrices come as pointers to their rows, so that rows may be gathered from anywhere. A `Keep` drops elements on the way (LoRA's
// dropout).
#pragma once

#include <algorithm>

#include "parallel.h"
#include "tile.h"

/// A row matrix: its first element, and how many elements lie from one row to the next.
template <class E>
struct Rows {
    E* data;
    long row;
    E* at(long t, long i = 0) const { return data + t * row + i; }
};

/// Point to n rows, which begin at `first`.
template <class E>
inline void point(const E* first, long row, long n, const E** out) {
    for (long t = 0; t < n; t++) out[t] = first + t * row;
}

/// Keeps everything.
struct KeepAll {
    Mask at(long, long) const { return 0xFFFF; }
};

/// Keeps elements with row[t] * column[i] >= threshold in wrapping int32 (dropout.py).
struct Keep {
    const int32_t *row, *column;
    int32_t threshold;
    /// Of elements i ... i + 15 of row t, those that are kept. Columns up to a multiple of 32 are read.
    Mask at(long t, long i) const {
        Words product = _mm512_mullo_epi32(_mm512_set1_epi32(row[t]), _mm512_loadu_si512(column + i));
        return _mm512_cmpge_epi32_mask(product, _mm512_set1_epi32(threshold));
    }
};

/// The first `n` elements from p on that are kept, up to a register full; `t` and `i` are the first one's row and column.
template <class K>
inline Words load_kept(const float* p, long n, const K& keep, long t, long i) {
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(Mask(first_lanes(n) & keep.at(t, i)), p));
}
template <class K>
inline Words load_kept(const bf16* p, long n, const K& keep, long t, long i) {
    __mmask32 lanes = n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1;
    return _mm512_maskz_loadu_epi16(lanes & _mm512_kunpackw(keep.at(t, i + 16), keep.at(t, i)), p);
}

/// Elements in a register.
template <class E>
constexpr long FULL = 16 * per_word<E>;

/// Pack rows, summed over later, as a right operand: out[k * step + n] is the word of column n of rows k (float32) or 2k and
/// 2k + 1 (bfloat16). Columns are filled up with 0 to a multiple of 16. `t` and `i` name the first row and column to `keep`.
template <class E, class K>
inline void pack_rows(const E* const* rows, long num_rows, long num_columns, uint32_t* out, long step, const K& keep, long t, long i) {
    // Pairs of elements n of the one register and of the other: the lower half's (n and 32 + n) and the upper half's.
    const Words lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Words low = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
    const Words high = _mm512_add_epi32(low, _mm512_set1_epi32(0x00100010));
    for (long k = 0; k < words<E>(num_rows); k++)
        for (long n = 0; n < num_columns; n += FULL<E>) {
            const long row = k * per_word<E>, left = num_columns - n;
            Words even = load_kept(rows[row] + n, left, keep, t + row, i + n);
            if constexpr (per_word<E> == 1) {
                _mm512_storeu_si512(out + k * step + n, even);
            } else {
                Words odd = _mm512_setzero_si512();
                if (row + 1 < num_rows) odd = load_kept(rows[row + 1] + n, left, keep, t + row + 1, i + n);
                _mm512_storeu_si512(out + k * step + n, _mm512_permutex2var_epi16(even, low, odd));
                if (left > 16) _mm512_storeu_si512(out + k * step + n + 16, _mm512_permutex2var_epi16(even, high, odd));
            }
        }
}

/// Transpose sixteen registers of sixteen words.
inline void transpose(Words r[16]) {
    Words t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += 8)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xDD);
        }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xDD);
    }
}

/// Pack rows, which become columns, as a right operand: out[k * step + n] is word k of row n. Rows beyond the last are zeros up to
/// a multiple of 16.
template <class E>
inline void pack_transposed(const E* const* rows, long num_rows, long num_elements, uint32_t* out, long step) {
    for (long n = 0; n < num_rows; n += 16)
        for (long k = 0; k < words<E>(num_elements); k += 16) {
            Words block[16];
            const long e = k * per_word<E>;
            for (int j = 0; j < 16; j++) {
                block[j] = _mm512_setzero_si512();
                if (n + j < num_rows) block[j] = load_kept(rows[n + j] + e, num_elements - e, KeepAll{}, 0, 0);
            }
            transpose(block);
            long here = std::min(16L, words<E>(num_elements) - k);
            for (int j = 0; j < here; j++) _mm512_storeu_si512(out + (k + j) * step + n, block[j]);
        }
}

/// Copy rows as a left operand whose rows lie `step` words apart, filled up with 0 to a multiple of 16 words and of ROWS rows.
template <class E, class K>
inline void copy_rows(const E* const* rows, long num_rows, long num_elements, uint32_t* out, long step, const K& keep, long t, long i) {
    for (long m = 0; m < num_rows; m++)
        for (long e = 0; e < num_elements; e += FULL<E>)
            _mm512_storeu_si512(out + m * step + e / per_word<E>, load_kept(rows[m] + e, num_elements - e, keep, t + m, i + e));
    const size_t row_bytes = size_t(ceil_to(words<E>(num_elements), 16)) * 4;
    for (long m = num_rows; m < ceil_to(num_rows, ROWS); m++) std::memset(out + m * step, 0, row_bytes);
}
