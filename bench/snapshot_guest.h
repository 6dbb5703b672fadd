#ifndef CATNAP_BENCH_SNAPSHOT_GUEST_H_
#define CATNAP_BENCH_SNAPSHOT_GUEST_H_

#include <memory>
#include <string>

#include "catnap/catnap.h"

namespace catnap::bench {

inline constexpr uint64_t kSleeperBytes = 512ull << 20;

// What runs in the guests of this benchmark, ours and the peers': Python with
// much of its library and Flask in memory, and a port that answers (or, where
// there is no loopback, the file /tmp/ready).
inline constexpr uint16_t kSleeperPort = 8080;
inline constexpr const char* kSleeperProgram = R"(
import asyncio, ctypes, decimal, email.message, hashlib, http.server, json
import logging, multiprocessing, sqlite3, ssl, statistics, unittest
import urllib.request, xml.dom.minidom, zipfile, flask
server = http.server.HTTPServer(('', 8080), http.server.BaseHTTPRequestHandler)
open('/tmp/ready', 'w').close()
server.serve_forever()
)";

std::shared_ptr<Host> OpenHost(const std::string& state_dir);

// Debian with that program started; built unless it is there.
Image SleeperImage(Host& host, BuildObserver* observer);

// Builds the image and copies the memory it stores into `directory`, which must
// not exist, with a file `resident`: how many bytes of the guest's mapping were
// resident when it was stored. Needs a KVM that runs Linux.
void SaveGuest(const std::string& directory);

// Where the saved guest is, made by the emulated host when it is missing.
std::string FindSavedGuest();

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_SNAPSHOT_GUEST_H_
