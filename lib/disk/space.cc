#include "disk/space.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "disk/layer_format.h"

namespace catnap::disk {
namespace {

constexpr uint64_t kBits = 64;

constexpr uint64_t Mask(uint64_t at) { return uint64_t{1} << (at % kBits); }

}  // namespace

bool BitSet::Test(uint64_t at) const {
  const uint64_t word = at / kBits;
  return word < words_.size() && (words_[word] & Mask(at)) != 0;
}

void BitSet::Set(uint64_t at) {
  const uint64_t word = at / kBits;
  if (word >= words_.size()) words_.resize(word + 1);
  if ((words_[word] & Mask(at)) == 0) ++count_;
  words_[word] |= Mask(at);
}

void BitSet::Clear(uint64_t at) {
  if (!Test(at)) return;
  --count_;
  words_[at / kBits] &= ~Mask(at);
}

std::optional<uint64_t> BitSet::FirstSet(uint64_t from) const {
  if (count_ == 0) return std::nullopt;
  uint64_t ignore = Mask(from) - 1;
  for (uint64_t word = from / kBits; word < words_.size(); ++word) {
    const uint64_t bits = words_[word] & ~ignore;
    if (bits != 0) {
      return word * kBits + static_cast<uint64_t>(std::countr_zero(bits));
    }
    ignore = 0;
  }
  return std::nullopt;
}

uint64_t BitSet::FirstClear(uint64_t from) const {
  uint64_t ignore = Mask(from) - 1;
  for (uint64_t word = from / kBits; word < words_.size(); ++word) {
    const uint64_t bits = ~words_[word] & ~ignore;
    if (bits != 0) {
      return word * kBits + static_cast<uint64_t>(std::countr_zero(bits));
    }
    ignore = 0;
  }
  return std::max(from, words_.size() * kBits);
}

void BitSet::Absorb(BitSet* other) {
  if (count_ == 0) {
    std::swap(*this, *other);
  } else {
    for (auto at = other->FirstSet(0); at.has_value();
         at = other->FirstSet(*at + 1)) {
      Set(*at);
    }
  }
  *other = {};
}

SpaceMap::SpaceMap() {
  for (uint32_t page = 0; page < kFirstFreePage; ++page) ClaimPage(page);
}

bool SpaceMap::ClaimCluster(uint64_t cluster) {
  if (used_.Test(cluster)) return false;
  used_.Set(cluster);
  return true;
}

bool SpaceMap::ClaimPage(uint32_t page) {
  if (!claimed_pages_.insert(page).second) return false;
  used_.Set(page / kPagesPerCluster);
  return true;
}

void SpaceMap::FinishClaims() {
  const std::set<uint32_t> claimed = std::exchange(claimed_pages_, {});
  auto at = claimed.begin();
  while (at != claimed.end()) {
    const uint32_t cluster = *at / kPagesPerCluster;
    for (uint32_t i = 0; i < kPagesPerCluster; ++i) {
      const uint32_t page = cluster * kPagesPerCluster + i;
      if (at != claimed.end() && *at == page) {
        ++at;
      } else {
        free_pages_.push_back(page);
      }
    }
  }
  // The lowest are given out first.
  std::reverse(free_pages_.begin(), free_pages_.end());
}

std::optional<uint32_t> SpaceMap::AllocateCluster() {
  search_from_ = used_.FirstClear(search_from_);
  if (search_from_ >= kMaxClusters) return std::nullopt;
  used_.Set(search_from_);
  return static_cast<uint32_t>(search_from_);
}

void SpaceMap::FreeCluster(uint32_t cluster) { freed_.Set(cluster); }

std::optional<uint32_t> SpaceMap::AllocatePage() {
  if (free_pages_.empty()) {
    const auto cluster = AllocateCluster();
    if (!cluster.has_value()) return std::nullopt;
    for (uint32_t i = kPagesPerCluster; i > 0; --i) {
      free_pages_.push_back(*cluster * kPagesPerCluster + i - 1);
    }
  }
  const uint32_t page = free_pages_.back();
  free_pages_.pop_back();
  return page;
}

void SpaceMap::FreePage(uint32_t page) { committing_pages_.push_back(page); }

void SpaceMap::ReturnPage(uint32_t page) { free_pages_.push_back(page); }

void SpaceMap::BeginCommit() {
  // What a commit that failed was to free is still here.
  committing_.Absorb(&freed_);
}

void SpaceMap::EndCommit() {
  reclaim_.Absorb(&committing_);
  free_pages_.insert(free_pages_.end(), committing_pages_.begin(),
                     committing_pages_.end());
  committing_pages_.clear();
}

std::optional<ClusterRun> SpaceMap::TakeReclaim(uint64_t max) {
  const auto first = reclaim_.FirstSet(0);
  if (!first.has_value()) return std::nullopt;
  ClusterRun run{*first, 0};
  while (run.count < max && reclaim_.Test(run.first + run.count)) {
    reclaim_.Clear(run.first + run.count);
    ++run.count;
  }
  return run;
}

void SpaceMap::Reclaimed(ClusterRun run) {
  for (uint64_t i = 0; i < run.count; ++i) used_.Clear(run.first + i);
  search_from_ = std::min(search_from_, run.first);
}

}  // namespace catnap::disk
