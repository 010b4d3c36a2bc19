#pragma once

// Checks arrays from Python before their addresses are used.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/dispatch.h"
#include "runtime/pool.h"

namespace nb = nanobind;

using faquant::threads_of;

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using WritableArray = nb::ndarray<nb::device::cpu>;
using OptionalArray = std::optional<Array>;

template <typename T>
const T* vector_data(const Array& array, const char* name, const char* dtype) {
    if (array.dtype() != nb::dtype<T>() || array.ndim() != 1 || (array.shape(0) > 1 && array.stride(0) != 1)) {
        throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " + dtype +
                                    ".");
    }
    return static_cast<const T*>(array.data());
}

inline std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t size : shape) {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
}

// Whether the array has this shape and is contiguous. With `page_stride`, only what it has under its first index must
// be contiguous, and the distance in elements to the next index, at which there must be space for it, is set.
template <typename AnyArray>
bool has_layout(const AnyArray& array, const std::vector<int64_t>& shape, int64_t* page_stride) {
    if (array.ndim() != shape.size()) {
        return false;
    }
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
        const int64_t size = static_cast<int64_t>(array.shape(i));
        if (size != shape[i]) {
            return false;
        }
        // An empty array may have any strides.
        if (size > 1 && array.size() > 0 && array.stride(i) != stride) {
            if (page_stride == nullptr || i > 0 || array.stride(i) < stride) {
                return false;
            }
            stride = array.stride(i);
        }
        if (i == 0 && page_stride != nullptr) {
            *page_stride = stride;
        }
        stride *= size;
    }
    return true;
}

[[noreturn]] inline void refuse(const char* name, const char* elements, const std::vector<int64_t>& shape) {
    throw std::invalid_argument(std::string(name) + " must be a contiguous array of " + elements + " " +
                                shape_text(shape) + ".");
}

// The array's data, after checks. See has_layout about `page_stride`.
template <typename T, typename AnyArray>
T* data_of(const AnyArray& array, const char* name, const char* dtype, const std::vector<int64_t>& shape,
           int64_t* page_stride = nullptr) {
    if (array.dtype() != nb::dtype<std::remove_const_t<T>>() || !has_layout(array, shape, page_stride)) {
        refuse(name, dtype, shape);
    }
    return static_cast<T*>(array.data());
}

// The shape of an array, which must have `count` dimensions.
template <typename AnyArray>
std::vector<int64_t> shape_of(const AnyArray& array, const char* name, size_t count) {
    if (array.ndim() != count) {
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(count) + " dimensions.");
    }
    std::vector<int64_t> shape;
    for (size_t i = 0; i < count; ++i) {
        shape.push_back(static_cast<int64_t>(array.shape(i)));
    }
    return shape;
}

// Two-byte elements of any type: NumPy has no bfloat16, and torch and NumPy use different names for float16.
template <typename AnyArray>
uint16_t* halves_of(const AnyArray& array, const char* name, const std::vector<int64_t>& shape,
                    int64_t* page_stride = nullptr) {
    if (array.dtype().bits != 16 || array.dtype().lanes != 1 || !has_layout(array, shape, page_stride)) {
        refuse(name, "two-byte elements", shape);
    }
    return static_cast<uint16_t*>(array.data());
}

inline const float* floats(const OptionalArray& array, const char* name, const std::vector<int64_t>& shape) {
    return array ? data_of<const float>(*array, name, "float32", shape) : nullptr;
}

inline const faquant::KernelTable& kernels(const std::optional<std::string>& isa) {
    return isa ? faquant::find_kernels(*isa) : *faquant::selected_kernels().kernels;
}

inline void require(bool condition, const char* message) {
    if (!condition) {
        throw std::invalid_argument(message);
    }
}
