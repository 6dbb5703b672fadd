#ifndef CATNAP_TESTS_LINUX_PYTHON_GUEST_H_
#define CATNAP_TESTS_LINUX_PYTHON_GUEST_H_

#include <string>

#include "base/unique_fd.h"
#include "catnap/catnap.h"
#include "support/tcp.h"

namespace catnap::test {

inline constexpr uint16_t kPythonPort = 7000;

// A server with all that a sleep must keep: a counter and 4 MiB of memory that
// change with it, and a file on the disk with a line for each count. A
// connection asks one thing: "next\n", to count on, or "look\n". The answer is
// a line that says all of the state, with checksums over every byte of it; of
// the file as the disk has it, not the page cache.
inline constexpr char kPythonGuest[] = R"(
import os, random, socketserver, zlib
PAGE, PAGES, PATH = 4096, 1024, '/counts'
generator = random.Random(4)
memory = bytearray(generator.randbytes(PAGE * PAGES))
count = 0

def count_on():
    global count
    count += 1
    for _ in range(32):
        at = PAGE * generator.randrange(PAGES)
        memory[at:at + PAGE] = generator.randbytes(PAGE)
    with open(PATH, 'a') as file:
        file.write(f'{count}\n')

def content():
    with open(PATH, 'rb') as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        if self.rfile.readline() == b'next\n':
            count_on()
        data = content()
        self.wfile.write(
            f'count {count}, memory {zlib.crc32(memory):08x}, '
            f'file of {len(data.split())} lines, {zlib.crc32(data):08x}'
            .encode())

open(PATH, 'w').close()
socketserver.TCPServer.request_queue_size = 16
socketserver.TCPServer(('127.0.0.1', 7000), Handler).serve_forever()
)";

inline ImageSpec PythonImage(const std::string& name) {
  ImageSpec spec = ImageSpec::FromTar(name, CATNAP_PROGRAM_ROOT);
  spec.memory_bytes = uint64_t{128} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  spec.entrypoint = {"/bin/python3", "-c", kPythonGuest};
  spec.ready.port = kPythonPort;
  spec.ready.timeout = std::chrono::seconds(120);
  return spec;
}

// What the program answers, or why it was not asked.
inline absl::StatusOr<std::string> AskPython(const MicroVM& vm,
                                             const std::string& what) {
  const auto connection =
      vm.Connect(kPythonPort, {.timeout = std::chrono::seconds(60)});
  if (!connection.ok()) return connection.status();
  if (!testing::SendAll(connection->get(), what + "\n")) {
    return absl::UnavailableError("the Python program takes no question");
  }
  std::string answer = testing::ReceiveUpTo(connection->get(), 4096);
  if (answer.empty()) {
    return absl::UnavailableError("the Python program gives no answer");
  }
  return answer;
}

// The answer says that memory and file are of one count.
inline bool IsConsistent(const std::string& answer) {
  const std::string begin = "count ";
  const std::string count =
      answer.substr(begin.size(), answer.find(',') - begin.size());
  return answer.starts_with(begin) &&
         answer.find("file of " + count + " lines") != std::string::npos;
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_PYTHON_GUEST_H_
