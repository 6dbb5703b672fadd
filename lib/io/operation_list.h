#ifndef CATNAP_LIB_IO_OPERATION_LIST_H_
#define CATNAP_LIB_IO_OPERATION_LIST_H_

#include "io/operation.h"

namespace catnap::io {

// First in, first out, linked through the operations: neither adding nor
// removing from the middle allocates or searches. An operation is in at most
// one list. Thread-compatible; owns nothing.
class OperationList {
 public:
  bool empty() const { return first_ == nullptr; }
  // nullptr when empty.
  Operation* first() const { return first_; }

  void PushBack(Operation* operation) {
    operation->previous = last_;
    operation->next = nullptr;
    (last_ == nullptr ? first_ : last_->next) = operation;
    last_ = operation;
  }

  // REQUIRES: `operation` is in this list.
  void Remove(Operation* operation) {
    Operation* const before = operation->previous;
    Operation* const after = operation->next;
    (before == nullptr ? first_ : before->next) = after;
    (after == nullptr ? last_ : after->previous) = before;
    operation->previous = nullptr;
    operation->next = nullptr;
  }

  // nullptr when empty.
  Operation* PopFront() {
    Operation* const operation = first_;
    if (operation != nullptr) Remove(operation);
    return operation;
  }

 private:
  Operation* first_ = nullptr;
  Operation* last_ = nullptr;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_OPERATION_LIST_H_
