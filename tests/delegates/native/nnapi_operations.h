// A model as NNAPI's functions describe it, and what its operations compute.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

using Shape = std::vector<uint32_t>;
using Numbers = std::vector<double>;

struct Operand {
  int32_t type = 0;
  Shape shape;
  float scale = 0;
  int32_t zero_point = 0;
  std::vector<float> scales;  // of TENSOR_QUANT8_SYMM_PER_CHANNEL, along `axis`
  uint32_t axis = 0;
  bool is_constant = false;
  std::vector<uint8_t> bytes;  // of a constant
};

struct Operation {
  int type;
  std::vector<uint32_t> inputs, outputs;
};

struct Model {
  std::vector<Operand> operands;
  std::vector<Operation> operations;
  std::vector<uint32_t> inputs, outputs;
};

// Why a model, an operation or an execution is refused.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One array for each operand, quantised numbers less their zero point: real = number * scale.
using Values = std::vector<Numbers>;
using Step = std::function<void(Values&)>;

// What computes `operation`. Throws `Refused` for all that NNAPI's specification does not allow it, and for what
// is not written here.
Step Compile(const Model& model, const Operation& operation);

size_t Bytes(const Operand& operand);
Numbers Unpack(const Operand& operand, const uint8_t* bytes);
void Pack(const Operand& operand, const Numbers& numbers, uint8_t* bytes);
