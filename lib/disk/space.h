#ifndef CATNAP_LIB_DISK_SPACE_H_
#define CATNAP_LIB_DISK_SPACE_H_

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

namespace catnap::disk {

// A set of numbers, a bit each, that grows as needed. Thread-compatible.
class BitSet {
 public:
  bool Test(uint64_t at) const;
  void Set(uint64_t at);
  void Clear(uint64_t at);
  uint64_t count() const { return count_; }
  // The first number not below `from` that is in the set.
  std::optional<uint64_t> FirstSet(uint64_t from) const;
  // The first number not below `from` that is not; always there is one.
  uint64_t FirstClear(uint64_t from) const;
  // Takes the other's numbers in, and leaves it empty.
  void Absorb(BitSet* other);

 private:
  std::vector<uint64_t> words_;
  uint64_t count_ = 0;
};

// A run of clusters.
struct ClusterRun {
  uint64_t first = 0;
  uint64_t count = 0;
};

// Which clusters and metadata pages of a layer file are whose. What is freed
// may still be named by the last durable commit, so it is given out again only
// after a commit that was begun later is durable: BeginCommit() and
// EndCommit(). Freed clusters then wait for TakeReclaim(), which punches
// them.
//
// Memory: four bits for each cluster of the file, 8 MiB for 1 TiB; four bytes
// for each free metadata page. Thread-compatible.
class SpaceMap {
 public:
  SpaceMap();

  // Opening a file, whose size the caller has compared with the number. False:
  // in use already.
  bool ClaimCluster(uint64_t cluster);
  // Several pages of one cluster are fine; false: the page is in use, or data
  // is where it lies. Call it for all pages before ClaimCluster().
  bool ClaimPage(uint32_t page);
  // The pages beside those claimed are free. Call it once, after all claims.
  void FinishClaims();

  // The lowest that is free, so that the file stays short and neighbours on the
  // disk become neighbours in the file. Empty: the file is as large as the
  // format allows.
  std::optional<uint32_t> AllocateCluster();
  void FreeCluster(uint32_t cluster);
  std::optional<uint32_t> AllocatePage();
  // The commit that is being made no longer names the page.
  void FreePage(uint32_t page);
  // Gives back a page that no durable commit can name.
  void ReturnPage(uint32_t page);

  void BeginCommit();
  // What was freed before a BeginCommit() may be used again.
  void EndCommit();

  // A run of clusters to be punched, at most `max` long. They are nobody's
  // until Reclaimed().
  std::optional<ClusterRun> TakeReclaim(uint64_t max);
  void Reclaimed(ClusterRun run);

  uint64_t used_clusters() const { return used_.count(); }

 private:
  static constexpr uint64_t kMaxClusters = uint64_t{1} << 28;  // 16 TiB.

  BitSet used_;        // Not to be given out.
  BitSet freed_;       // Since the last BeginCommit().
  BitSet committing_;  // Before it; a commit will make them free.
  BitSet reclaim_;     // To be punched.
  std::set<uint32_t> claimed_pages_;  // Until FinishClaims().
  uint64_t search_from_ = 1;
  std::vector<uint32_t> free_pages_;
  std::vector<uint32_t> committing_pages_;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_SPACE_H_
