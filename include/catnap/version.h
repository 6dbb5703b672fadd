#ifndef CATNAP_VERSION_H_
#define CATNAP_VERSION_H_

// The version of these headers. Before 1.0 there is no ABI promise: a program
// runs with the minor version it was built with (SOVERSION is 0.minor).
#define CATNAP_VERSION_MAJOR 0
#define CATNAP_VERSION_MINOR 1
#define CATNAP_VERSION_PATCH 0

#endif  // CATNAP_VERSION_H_
