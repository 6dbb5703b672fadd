#ifndef CATNAP_CATNAP_H_
#define CATNAP_CATNAP_H_

// The whole public API of the core library.

#include "catnap/errors.h"
#include "catnap/executor.h"
#include "catnap/export.h"
#include "catnap/host.h"
#include "catnap/log.h"
#include "catnap/network.h"
#include "catnap/version.h"

#endif  // CATNAP_CATNAP_H_
