#ifndef CATNAP_LIB_RUNTIME_IMAGE_STORE_H_
#define CATNAP_LIB_RUNTIME_IMAGE_STORE_H_

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "runtime/image_record.h"

namespace catnap::runtime {

// A directory of images, shared by any number of processes. IMAGE_FORMAT.md
// says what is in it. Thread-safe; everything blocks on the disk.
class ImageStore {
 public:
  // A directory that becomes a version, or is removed with this object.
  class Draft {
   public:
    Draft(std::filesystem::path directory, base::UniqueFd lock)
        : directory_(std::move(directory)), lock_(std::move(lock)) {}
    ~Draft();
    Draft(const Draft&) = delete;
    Draft& operator=(const Draft&) = delete;

    const std::filesystem::path& directory() const { return directory_; }

   private:
    friend class ImageStore;
    std::filesystem::path directory_;  // Empty once published.
    base::UniqueFd lock_;
  };

  // Makes the directory when it is missing, and removes what builds of
  // processes that died left in it.
  // Errors: PERMISSION_DENIED, RESOURCE_EXHAUSTED, ... naming the directory.
  static absl::StatusOr<std::unique_ptr<ImageStore>> Open(
      std::filesystem::path directory, base::Logger log);

  // Held by the one, of all processes, that builds a recipe.
  class RecipeLock {
   public:
    RecipeLock(std::string path, base::UniqueFd fd)
        : path_(std::move(path)), fd_(std::move(fd)) {}
    ~RecipeLock();
    RecipeLock(const RecipeLock&) = delete;
    RecipeLock& operator=(const RecipeLock&) = delete;

   private:
    const std::string path_;
    const base::UniqueFd fd_;
  };
  // Blocks while another has it. `text` is the recipe's, as a file's name.
  // Errors: CANCELLED, DEADLINE_EXCEEDED.
  absl::StatusOr<std::unique_ptr<RecipeLock>> LockRecipe(
      const std::string& text, const agent::CallLimits& limits);

  absl::StatusOr<std::unique_ptr<Draft>> NewDraft();
  // Writes `record` beside what the draft has and makes it the next version of
  // its name.
  absl::StatusOr<std::shared_ptr<const ImageRecord>> Publish(
      std::unique_ptr<Draft> draft, ImageRecord record);

  // "" : the newest. Errors: NOT_FOUND, naming what there is; DATA_LOSS.
  absl::StatusOr<std::shared_ptr<const ImageRecord>> Get(
      std::string_view name, std::string_view version) const;
  // The newest version with that recipe; null: none.
  std::shared_ptr<const ImageRecord> FindRecipe(
      const std::string& name, const std::vector<uint8_t>& recipe) const;
  // By name and version. What cannot be read is logged and left out.
  std::vector<std::shared_ptr<const ImageRecord>> List() const;
  // Keeps its files from Delete(), of any process, as long as the result lives.
  // Does not wait. Errors: NOT_FOUND, it was deleted; UNAVAILABLE, another
  // process publishes or deletes it just now.
  absl::StatusOr<ImageUse> Use(const ImageRecord& record);
  // Removes it; who has its files open keeps them. Idempotent.
  // Errors: FAILED_PRECONDITION with kInUse.
  static absl::Status Delete(const ImageRecord& record);

 private:
  ImageStore(std::filesystem::path directory, base::Logger log)
      : directory_(std::move(directory)), log_(std::move(log)) {}
  void RemoveAbandoned() const;
  // Ascending.
  std::vector<uint32_t> VersionsOf(const std::string& name) const;
  absl::StatusOr<std::shared_ptr<const ImageRecord>> Read(
      const std::string& name, uint32_t major) const;

  const std::filesystem::path directory_;
  const base::Logger log_;
  base::Mutex mutex_;
  // Locks by directory: one descriptor, however many use an image.
  std::map<std::string, std::weak_ptr<const base::UniqueFd>> uses_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_IMAGE_STORE_H_
