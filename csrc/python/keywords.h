#pragma once

#include <nanobind/nanobind.h>

#include <string>

namespace nb = nanobind;

// The keyword arguments of a call with too many arguments to bind by position.
class Keywords {
  public:
    explicit Keywords(const nb::kwargs& given) : given_(given) {}

    template <typename T>
    T take(const char* name) {
        T value;
        if (!given_.contains(name)) {
            throw nb::type_error((std::string("The argument ") + name + " is missing.").c_str());
        }
        if (!nb::try_cast(given_[name], value)) {
            throw nb::type_error((std::string(name) + " has a wrong type.").c_str());
        }
        ++taken_;
        return value;
    }

    void require_all_taken() const {
        if (taken_ != given_.size()) {
            throw nb::type_error("There is an unknown argument.");
        }
    }

  private:
    const nb::kwargs& given_;
    size_t taken_ = 0;
};
