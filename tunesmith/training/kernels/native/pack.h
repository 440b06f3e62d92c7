// Lays matrices out as the operands of tile.h.
//
// Matrices come as pointers to their rows, so that rows may be gathered from anywhere. A `Keep` drops elements on the way (LoRA's
// dropout).
#pragma once

#include <algorithm>

#include "parallel.h"
#include "tile.h"

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

inline Words row_words(const float* p, Mask m) { return _mm512_castps_si512(_mm512_maskz_loadu_ps(m, p)); }
inline Words row_words(const bf16* p, Mask m) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)); }

/// Pack rows, summed over later, as a right operand: out[k * step + n] is the word of column n of rows k (float32) or 2k and
/// 2k + 1 (bfloat16). Columns are filled up with 0 to a multiple of 16. `t` and `i` name the first row and column to `keep`.
template <class E, class K>
inline void pack_rows(const E* const* rows, long num_rows, long num_columns, uint32_t* out, long step, const K& keep, long t, long i) {
    for (long k = 0; k < words<E>(num_rows); k++)
        for (long n = 0; n < num_columns; n += 16) {
            Mask lanes = first_lanes(num_columns - n);
            Words word;
            if constexpr (per_word<E> == 1) {
                word = row_words(rows[k] + n, Mask(lanes & keep.at(t + k, i + n)));
            } else {
                word = row_words(rows[2 * k] + n, Mask(lanes & keep.at(t + 2 * k, i + n)));
                if (2 * k + 1 < num_rows) {
                    Words odd = row_words(rows[2 * k + 1] + n, Mask(lanes & keep.at(t + 2 * k + 1, i + n)));
                    word = _mm512_or_si512(word, _mm512_slli_epi32(odd, 16));
                }
            }
            _mm512_storeu_si512(out + k * step + n, word);
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

/// The words from p on that hold its first n elements; the rest is 0.
inline Words load_words(const float* p, long n) { return _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(n), p)); }
inline Words load_words(const bf16* p, long n) {
    return _mm512_maskz_loadu_epi16(n >= 32 ? 0xFFFFFFFFu : (1u << n) - 1, p);
}

/// Pack rows, which become columns, as a right operand: out[k * step + n] is word k of row n. Rows beyond the last are zeros up to
/// a multiple of 16.
template <class E>
inline void pack_transposed(const E* const* rows, long num_rows, long num_elements, uint32_t* out, long step) {
    for (long n = 0; n < num_rows; n += 16)
        for (long k = 0; k < words<E>(num_elements); k += 16) {
            Words block[16];
            for (int j = 0; j < 16; j++)
                block[j] = n + j < num_rows ? load_words(rows[n + j] + k * per_word<E>, num_elements - k * per_word<E>) : _mm512_setzero_si512();
            transpose(block);
            long here = std::min(16L, words<E>(num_elements) - k);
            for (int j = 0; j < here; j++) _mm512_storeu_si512(out + (k + j) * step + n, block[j]);
        }
}

/// Copy rows as a left operand whose rows lie `step` words apart, filled up with 0 to a multiple of 16 words and of ROWS rows.
template <class E, class K>
inline void copy_rows(const E* const* rows, long num_rows, long num_elements, uint32_t* out, long step, const K& keep, long t, long i) {
    constexpr long per_register = 16 * per_word<E>;
    for (long m = 0; m < num_rows; m++)
        for (long e = 0; e < num_elements; e += per_register) {
            long left = num_elements - e;
            Words word;
            if constexpr (per_word<E> == 1) {
                word = row_words(rows[m] + e, Mask(first_lanes(left) & keep.at(t + m, i + e)));
            } else {
                uint32_t lanes = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1;
                uint32_t kept = uint32_t(keep.at(t + m, i + e)) | (left > 16 ? uint32_t(keep.at(t + m, i + e + 16)) << 16 : 0);
                word = _mm512_maskz_loadu_epi16(lanes & kept, rows[m] + e);
            }
            _mm512_storeu_si512(out + m * step + e / per_word<E>, word);
        }
    for (long m = num_rows; m < ceil_to(num_rows, ROWS); m++) std::memset(out + m * step, 0, size_t(ceil_to(words<E>(num_elements), 16)) * 4);
}
