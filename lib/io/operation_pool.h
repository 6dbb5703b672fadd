#ifndef CATNAP_LIB_IO_OPERATION_POOL_H_
#define CATNAP_LIB_IO_OPERATION_POOL_H_

#include <array>
#include <memory>
#include <vector>

#include "io/event_loop.h"
#include "io/operation.h"

namespace catnap::io {

// Operations at addresses that never change, found by their id. Grows by slabs
// to the largest number that was ever outstanding and stays there.
//
// Thread-compatible.
class OperationPool {
 public:
  // A reset operation.
  Operation* Acquire() {
    if (free_.empty()) Grow();
    Operation* const operation = free_.back();
    free_.pop_back();
    return operation;
  }

  // REQUIRES: came from Acquire(), and was reset with a new generation.
  void Release(Operation* operation) { free_.push_back(operation); }

  // nullptr when the id is of no operation, or of one that has ended.
  Operation* Find(OperationId id) {
    if (id.slot >= slabs_.size() * kSlabSize) return nullptr;
    Operation& operation = (*slabs_[id.slot / kSlabSize])[id.slot % kSlabSize];
    return operation.generation == id.generation ? &operation : nullptr;
  }

  template <typename F>
  void ForEach(F&& f) {
    for (const auto& slab : slabs_) {
      for (Operation& operation : *slab) f(&operation);
    }
  }

 private:
  static constexpr size_t kSlabSize = 64;
  using Slab = std::array<Operation, kSlabSize>;

  void Grow() {
    slabs_.push_back(std::make_unique<Slab>());
    auto slot = static_cast<uint32_t>((slabs_.size() - 1) * kSlabSize);
    // All of them are free at times; Release() then never allocates.
    free_.reserve(slabs_.size() * kSlabSize);
    for (Operation& operation : *slabs_.back()) {
      operation.slot = slot++;
      free_.push_back(&operation);
    }
  }

  std::vector<std::unique_ptr<Slab>> slabs_;
  std::vector<Operation*> free_;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_OPERATION_POOL_H_
