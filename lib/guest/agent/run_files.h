#ifndef CATNAP_LIB_GUEST_AGENT_RUN_FILES_H_
#define CATNAP_LIB_GUEST_AGENT_RUN_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace catnap::guest {

// What programs of the guest find in /run/catnap:
//
//   generation   16 hexadecimal digits and a line feed. Changes at each wake,
//                in place: a reader may map it, read it again, or watch it.
//   env          NAME='value' in each line, quoted for a shell. Replaced whole
//                when it changes; empty until then.
class RunFiles {
 public:
  // `directory` is made; "" for no files.
  explicit RunFiles(const std::string& directory);
  ~RunFiles();
  RunFiles(const RunFiles&) = delete;
  RunFiles& operator=(const RunFiles&) = delete;

  // 0, or the one there is: the next one. Returns 0 or the errno.
  int SetGeneration(uint64_t generation);
  // `env` are NAME=value; others, and names that no shell takes, are left out.
  // Returns 0 or the errno.
  int SetEnv(const std::vector<std::string>& env);

 private:
  int WriteGeneration();

  const std::string directory_;
  int generation_fd_ = -1;
  uint64_t generation_ = 0;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_RUN_FILES_H_
