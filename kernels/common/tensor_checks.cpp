#include "kernels/common/tensor_checks.h"

#include <stdexcept>

namespace graft_kernels {

namespace {

// libtorch's own numbers, each of them a call into it.
struct Numbers {
  int32_t float32 = aoti_torch_dtype_float32();
  int32_t bfloat16 = aoti_torch_dtype_bfloat16();
  int32_t float16 = aoti_torch_dtype_float16();
  int32_t cpu = aoti_torch_device_type_cpu();
  int32_t cuda = aoti_torch_device_type_cuda();
};
const Numbers kNumbers;

int32_t device_type_of(const Tensor& tensor) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

bool has_memory(const Tensor& tensor) {
  const int32_t type = device_type_of(tensor);
  return type == kNumbers.cpu || type == kNumbers.cuda;
}

}  // namespace

void fail(const char* op, const char* argument, const std::string& expected,
          const std::string& got) {
  std::string text = "[";
  text.append(op).append("] ").append(argument).append(": expected ").append(expected);
  text.append(", got ").append(got);
  throw std::runtime_error(text);
}

ScalarType scalar_type_of(const Tensor& tensor) {
  int32_t number = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  return number == kNumbers.float32    ? ScalarType::Float
         : number == kNumbers.bfloat16 ? ScalarType::BFloat16
         : number == kNumbers.float16  ? ScalarType::Half
                                       : tensor.scalar_type();
}

Dtype dtype_of(const Tensor& tensor) {
  switch (scalar_type_of(tensor)) {
    case ScalarType::BFloat16:
      return Dtype::kBfloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      return Dtype::kFloat32;
  }
}

std::string to_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "dtype number " + std::to_string(static_cast<int>(dtype));
  }
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text.append(dim == 0 ? "" : ", ").append(std::to_string(tensor.size(dim)));
  }
  return text + "]";
}

std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) {
    return "cpu";
  }
  const std::string type = tensor.is_cuda() ? "cuda" : "another device type";
  return type + ":" + std::to_string(tensor.get_device_index());
}

void check_floating(const char* op, NamedTensor value) {
  const ScalarType dtype = scalar_type_of(value.tensor);
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    fail(op, value.name, "float32, bfloat16 or float16", to_text(dtype));
  }
}

void check_dtype(const char* op, NamedTensor value, ScalarType dtype, const char* origin) {
  if (scalar_type_of(value.tensor) != dtype) {
    fail(op, value.name, to_text(dtype) + " (" + origin + ")",
         to_text(scalar_type_of(value.tensor)));
  }
}

void check_same_dtype(const char* op, NamedTensor value, NamedTensor like) {
  const ScalarType wanted = scalar_type_of(like.tensor);
  if (scalar_type_of(value.tensor) != wanted) {
    check_dtype(op, value, wanted, (std::string("that of ") + like.name).c_str());
  }
}

void check_dtype_or_float32(const char* op, NamedTensor value, NamedTensor like) {
  const ScalarType dtype = scalar_type_of(value.tensor), wanted = scalar_type_of(like.tensor);
  if (dtype != wanted && dtype != ScalarType::Float) {
    fail(op, value.name, to_text(wanted) + " (dtype of " + like.name + ") or float32",
         to_text(dtype));
  }
}

void check_same_shape(const char* op, NamedTensor value, NamedTensor like) {
  const auto sizes = value.tensor.sizes();
  const auto wanted = like.tensor.sizes();
  bool same = sizes.size() == wanted.size();
  for (size_t dim = 0; same && dim < sizes.size(); ++dim) {
    same = sizes[dim] == wanted[dim];
  }
  if (!same) {
    fail(op, value.name, "shape " + shape_text(like.tensor) + " (that of " + like.name + ")",
         shape_text(value.tensor));
  }
}

void check_same_device(const char* op, NamedTensor value, NamedTensor like) {
  const bool same = device_type_of(value.tensor) == device_type_of(like.tensor) &&
                    value.tensor.get_device_index() == like.tensor.get_device_index();
  if (!same) {
    fail(op, value.name, "device " + device_text(like.tensor) + " (that of " + like.name + ")",
         device_text(value.tensor));
  }
}

void check_has_rows(const char* op, NamedTensor value) {
  if (value.tensor.dim() < 1) {
    fail(op, value.name, "at least one dimension", "a scalar");
  }
}

void check_rows(const char* op, NamedTensor value) {
  const int64_t last = value.tensor.dim() - 1;
  const int64_t stride = value.tensor.stride(last);
  if (stride != 1 && value.tensor.size(last) > 1) {
    fail(op, value.name, "a contiguous last dimension (stride 1)",
         "stride " + std::to_string(stride));
  }
}

void check_like(const char* op, NamedTensor value, NamedTensor like) {
  check_same_dtype(op, value, like);
  check_same_device(op, value, like);
  check_rows(op, value);
}

void check_vector(const char* op, NamedTensor value, int64_t size, const char* of,
                  NamedTensor like) {
  if (value.tensor.dim() != 1 || value.tensor.size(0) != size) {
    fail(op, value.name, "shape [" + std::to_string(size) + "] (" + of + ")",
         shape_text(value.tensor));
  }
  check_rows(op, value);
  check_same_dtype(op, value, like);
  check_same_device(op, value, like);
}

const void* read_pointer(const Tensor& tensor) {
  return has_memory(tensor) ? tensor.const_data_ptr() : nullptr;
}

void* write_pointer(const Tensor& tensor) {
  return has_memory(tensor) ? tensor.mutable_data_ptr() : nullptr;
}

int64_t count_rows(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  int64_t rows = 1;
  for (size_t dim = 0; dim + 1 < sizes.size(); ++dim) {
    rows *= sizes[dim];
  }
  return rows;
}

RowLayout row_layout(const char* op, NamedTensor value) {
  RowLayout layout;
  const auto sizes = value.tensor.sizes();
  const int64_t* strides = value.tensor.strides().data();
  int count = 0;
  for (size_t dim = 0; dim + 1 < sizes.size(); ++dim) {
    const int64_t size = sizes[dim], stride = strides[dim];
    if (size == 1) {
      continue;
    }
    if (count > 0 && layout.stride[count - 1] == size * stride) {
      layout.size[count - 1] *= size;
      layout.stride[count - 1] = stride;
      continue;
    }
    if (count == RowLayout::kMaxDims) {
      fail(op, value.name,
           "at most " + std::to_string(RowLayout::kMaxDims) +
               " leading dimensions after merging contiguous ones",
           "shape " + shape_text(value.tensor) + " with strides that do not merge");
    }
    layout.size[count] = size;
    layout.stride[count] = stride;
    ++count;
  }
  layout.num_dims = count == 0 ? 1 : count;
  return layout;
}

}  // namespace graft_kernels
