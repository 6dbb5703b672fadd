#ifndef CATNAP_LIB_GUEST_AGENT_TEXT_H_
#define CATNAP_LIB_GUEST_AGENT_TEXT_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace catnap::guest {

// The pieces between separators; one empty piece of an empty text.
std::vector<std::string_view> Split(std::string_view text, char separator);

// A small file, cut at `max_bytes`; "" when it cannot be read.
std::string ReadText(const std::string& path, size_t max_bytes);

// Writes a file of the kernel's in one write. False: refused; errno says why.
bool WriteText(const std::string& path, std::string_view text);

// "open /a/b: No such file or directory".
std::string ErrorText(std::string_view what, int error);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_TEXT_H_
