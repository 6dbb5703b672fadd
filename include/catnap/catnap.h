#ifndef CATNAP_CATNAP_H_
#define CATNAP_CATNAP_H_

// The whole public API of the core library.

#include "catnap/call.h"
#include "catnap/errors.h"
#include "catnap/executor.h"
#include "catnap/export.h"
#include "catnap/files.h"
#include "catnap/host.h"
#include "catnap/image.h"
#include "catnap/log.h"
#include "catnap/microvm.h"
#include "catnap/network.h"
#include "catnap/process.h"
#include "catnap/run_options.h"
#include "catnap/snapshot.h"
#include "catnap/version.h"

#endif  // CATNAP_CATNAP_H_
