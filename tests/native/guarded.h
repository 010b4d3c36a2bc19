#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

namespace faquant {
namespace {

// Memory for `count` numbers that ends where a page begins that must not be read.
template <typename T>
class Guarded {
  public:
    explicit Guarded(size_t count) : count_(count) {
        const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t whole = (count * sizeof(T) + page - 1) / page * page;
        size_ = whole + page;
        start_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start_ == MAP_FAILED || mprotect(static_cast<char*>(start_) + whole, page, PROT_NONE) != 0) {
            throw std::bad_alloc();
        }
        data_ = reinterpret_cast<T*>(static_cast<char*>(start_) + whole) - count;
    }
    ~Guarded() { munmap(start_, size_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    T* data() const { return data_; }
    T* begin() const { return data_; }
    T* end() const { return data_ + count_; }
    T& operator[](size_t i) const { return data_[i]; }

  private:
    size_t count_, size_;
    void* start_;
    T* data_;
};

}  // namespace
}  // namespace faquant
