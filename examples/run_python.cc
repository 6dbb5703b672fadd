// Runs a Python program in a MicroVM made of a root file system.
//
//   run_python ROOTFS.tar STATE_DIR [PROGRAM.py | -c CODE]
//
// The program may ask the host for something by a GuestService, at
// http://host.catnap:8000/; files go in and out; a web server in the guest
// answers through a forwarded port. Says how long each step took.
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>

#include "catnap/catnap.h"
#include "support.h"

namespace {

using examples::Fail;
using examples::Fetch;
using examples::Step;
using namespace std::chrono_literals;

constexpr uint16_t kServicePort = 8000;
constexpr uint16_t kWebPort = 8080;
constexpr char kDefaultProgram[] = R"(
import platform, urllib.request
print("Python", platform.python_version(), "on Linux", platform.release())
print("2**100 =", 2**100)
with urllib.request.urlopen("http://host.catnap:8000/") as answer:
    print("the host says:", answer.read().decode())
open("/tmp/result.txt", "w").write("written in the guest\n")
)";

// A function of this program that guests may call, by HTTP.
class HostFunction final : public catnap::GuestService {
 public:
  void OnConnection(const catnap::MicroVM& from,
                    catnap::UniqueFd connection) override {
    // A guest that asks and never ends its request is not waited for: one read
    // holds the request of an honest one.
    std::array<char, 4096> request{};
    if (::read(connection.get(), request.data(), request.size()) <= 0) return;
    const std::string body = "hello " + from.id() + ", this is process " +
                             std::to_string(::getpid());
    const std::string answer =
        "HTTP/1.0 200 OK\r\nContent-Length: " + std::to_string(body.size()) +
        "\r\n\r\n" + body;
    if (::write(connection.get(), answer.data(), answer.size()) < 0) return;
  }
};

// The program's text; false when it cannot be read.
bool ReadProgram(int argc, char** argv, std::string* program) {
  *program = kDefaultProgram;
  if (argc == 5 && std::string(argv[3]) == "-c") *program = argv[4];
  if (argc != 4) return true;
  std::ifstream file(argv[3]);
  program->assign(std::istreambuf_iterator<char>(file), {});
  return file.good() || file.eof();
}

// Puts a file in, takes one out, and asks a web server of the guest.
int UseFilesAndPorts(const catnap::MicroVM& vm,
                     const std::filesystem::path& room) {
  {
    const Step step("copy 100 files in, read one back");
    const auto tree = room / "tree";
    std::filesystem::create_directories(tree);
    for (int i = 0; i < 100; ++i) {
      std::ofstream(tree / ("file" + std::to_string(i))) << "content " << i;
    }
    const absl::Status copied = vm.CopyIn(tree, "/srv/tree");
    if (!copied.ok()) return Fail("copy in", copied);
    const auto content = vm.ReadFile("/srv/tree/file42");
    if (!content.ok()) return Fail("read", content.status());
    if (*content != "content 42") return 1;
  }
  {
    const Step step("copy them out again");
    const absl::Status copied = vm.CopyOut("/srv/tree", room / "out");
    if (!copied.ok()) return Fail("copy out", copied);
    if (!std::filesystem::exists(room / "out" / "file99")) return 1;
  }
  const Step step("start a web server, ask it by a forwarded port");
  const auto server =
      vm.Start({.argv = {"python3", "-m", "http.server", "--directory",
                         "/srv/tree", std::to_string(kWebPort)}});
  if (!server.ok()) return Fail("start", server.status());
  const auto forward = vm.ForwardPort({}, kWebPort);
  if (!forward.ok()) return Fail("forward", forward.status());
  for (int i = 0; i < 600; ++i) {
    if (Fetch(forward->address()).find("file42") != std::string::npos) return 0;
    std::this_thread::sleep_for(50ms);
  }
  std::fprintf(stderr, "the guest's web server does not answer\n");
  return 1;
}

int Run(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: run_python ROOTFS.tar STATE_DIR [PROGRAM.py | -c "
                 "CODE]\n");
    return 2;
  }
  std::string program;
  if (!ReadProgram(argc, argv, &program)) {
    std::fprintf(stderr, "%s cannot be read\n", argv[3]);
    return 2;
  }
  const std::filesystem::path room = argv[2];
  const auto host = catnap::Host::Open({.state_dir = room / "state"});
  if (!host.ok()) return Fail("open the host", host.status());

  auto image = (*host)->GetImage("python");
  if (!image.ok()) {
    const Step step("build an image of the root file system");
    image = catnap::Image::Build(**host,
                                 catnap::ImageSpec::FromTar("python", argv[1]));
    if (!image.ok()) return Fail("build the image", image.status());
  }
  std::printf("image %s %s: %.0f MB on disk\n", image->name().c_str(),
              image->version().c_str(),
              static_cast<double>(image->stored_bytes()) / 1e6);

  catnap::RunOptions options;
  options.services = {{kServicePort, std::make_shared<HostFunction>()}};
  auto vm = [&] {
    const Step step("boot a MicroVM until its agent answers");
    return catnap::MicroVM::Run(**host, *image, options);
  }();
  if (!vm.ok()) return Fail("run", vm.status());
  {
    const Step step("run the Python program");
    const auto result =
        vm->Exec({.argv = {"python3", "-c", program}, .timeout = 120s});
    if (!result.ok()) return Fail("exec", result.status());
    std::printf("%s%s", result->stdout_data.c_str(),
                result->stderr_data.c_str());
    if (result->exit_code != 0) {
      std::fprintf(stderr, "the program ended with %d\n", result->exit_code);
      return 1;
    }
  }
  {
    const Step step("run /bin/true 20 times");
    for (int i = 0; i < 20; ++i) {
      const auto result = vm->Exec({.argv = {"/bin/true"}});
      if (!result.ok()) return Fail("exec", result.status());
    }
  }
  if (const int failed = UseFilesAndPorts(*vm, room); failed != 0) {
    return failed;
  }
  const catnap::Usage usage = vm->GetUsage();
  std::printf("used: %.1f s of CPU, %.1f MB of disk, %.1f s\n",
              usage.vcpu_seconds, static_cast<double>(usage.stored_bytes) / 1e6,
              static_cast<double>(usage.running.count()) / 1e3);
  const Step step("end it, close the host");
  const absl::Status closed =
      (*host)->Close({.running = catnap::AtClose::kTerminate});
  return closed.ok() ? 0 : Fail("close", closed);
}

}  // namespace

int main(int argc, char** argv) { return Run(argc, argv); }
