// What a warp computes together: shuffles, ldmatrix and mma, after the fragment layouts of the PTX
// manual. See simt.h.
#include "runtime.h"

namespace simt {
namespace {

// One operand of a product, row by row; the wider of both shapes is 16x16.
struct Operand {
  float at[16][16];
};

float from_fp16(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

float from_tf32(unsigned bits) {  // a tensor core reads the upper 19 bits
  float value;
  bits &= 0xffffe000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

// d += a b in double precision, rounded once.
void accumulate(void* const* lanes, const Operand& a, const Operand& b, int depth) {
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<Product*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = d[i];
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(a.at[row][k]) * b.at[k][column];
      d[i] = static_cast<float>(sum);
    }
  }
}

// m16n8k16: a register holds two neighbours along k.
template <float (*Decode)(uint16_t)>
void multiply_16_bits(void* const* lanes) {
  Operand a, b;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mine = static_cast<const Product*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) {
      const uint16_t bits = mine->a[i / 2] >> (i % 2 * 16);
      a.at[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = Decode(bits);
    }
    for (int i = 0; i < 4; ++i) {
      const uint16_t bits = mine->b[i / 2] >> (i % 2 * 16);
      b.at[pair + i % 2 + i / 2 * 8][group] = Decode(bits);
    }
  }
  accumulate(lanes, a, b, 16);
}

}  // namespace

float from_bf16(uint16_t bits) {
  const unsigned word = static_cast<unsigned>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

uint16_t to_bf16(float value) {  // to the nearest, ties to even
  unsigned word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}

void nothing(void* const*) {}

void shuffle(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* mine = static_cast<Shuffle*>(lanes[lane]);
    if (mine == nullptr) continue;
    const auto* source = static_cast<const Shuffle*>(lanes[mine->source % 32]);
    mine->result =
        source == nullptr ? 0xffffffffu : source->value;  // a lane that is not there gives NaN
  }
}

void load_matrices(void* const* lanes) {
  unsigned rows[32][4];
  for (int lane = 0; lane < 32; ++lane)
    std::memcpy(rows[lane], static_cast<const Matrix*>(lanes[lane])->row, 16);
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      static_cast<Matrix*>(lanes[lane])->result[matrix] = rows[matrix * 8 + lane / 4][lane % 4];
    }
  }
}

void load_matrices_transposed(void* const* lanes) {
  uint16_t rows[32][8];
  for (int lane = 0; lane < 32; ++lane)
    std::memcpy(rows[lane], static_cast<const Matrix*>(lanes[lane])->row, 16);
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto* of_matrix = rows + matrix * 8 + lane % 4 * 2;
      static_cast<Matrix*>(lanes[lane])->result[matrix] =
          of_matrix[0][lane / 4] | static_cast<unsigned>(of_matrix[1][lane / 4]) << 16;
    }
  }
}

void multiply_bf16(void* const* lanes) { multiply_16_bits<from_bf16>(lanes); }
void multiply_fp16(void* const* lanes) { multiply_16_bits<from_fp16>(lanes); }

void multiply_tf32(void* const* lanes) {  // m16n8k8
  Operand a, b;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mine = static_cast<const Product*>(lanes[lane]);
    const int group = lane / 4, place = lane % 4;
    for (int i = 0; i < 4; ++i) a.at[group + i % 2 * 8][place + i / 2 * 4] = from_tf32(mine->a[i]);
    for (int i = 0; i < 2; ++i) b.at[place + i * 4][group] = from_tf32(mine->b[i]);
  }
  accumulate(lanes, a, b, 8);
}

}  // namespace simt
