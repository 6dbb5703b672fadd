#ifndef CATNAP_LIB_NET_LRU_MAP_H_
#define CATNAP_LIB_NET_LRU_MAP_H_

#include <cstddef>
#include <list>
#include <unordered_map>
#include <utility>

namespace catnap::net {

// A map of at most `capacity` (1 or more) entries: a new one beyond takes the
// place of the one that was longest not asked for. Thread-compatible.
template <typename Key, typename Value, typename Hash>
class LruMap {
 public:
  explicit LruMap(size_t capacity) : capacity_(capacity) {}

  // Valid until the next call; null: there is none. Counts as use.
  Value* Find(const Key& key) {
    const auto found = index_.find(key);
    if (found == index_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return &found->second->second;
  }

  // The value of the key, made when there was none.
  Value& Get(const Key& key) {
    if (Value* const found = Find(key); found != nullptr) return *found;
    if (index_.size() == capacity_) {
      index_.erase(entries_.back().first);
      entries_.pop_back();
    }
    entries_.emplace_front(key, Value());
    index_.emplace(key, entries_.begin());
    return entries_.front().second;
  }

  size_t size() const { return index_.size(); }
  void Clear() {
    index_.clear();
    entries_.clear();
  }

 private:
  using Entries = std::list<std::pair<Key, Value>>;

  const size_t capacity_;
  Entries entries_;  // The last used first.
  std::unordered_map<Key, typename Entries::iterator, Hash> index_;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_LRU_MAP_H_
