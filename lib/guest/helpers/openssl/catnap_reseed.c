/*
 * Keeps OpenSSL from drawing the same numbers in copies of a machine:
 *
 *   LD_PRELOAD=/run/catnap/lib/openssl/libcatnap_reseed.so program
 *
 * OpenSSL keeps a generator of its own in each process, which a MicroVM that is
 * forked has twice. This library has libcrypto take all random bytes from the
 * kernel instead, by RAND_set_rand_method(), which counts for what OpenSSL
 * draws for itself (keys, TLS) as well. The kernel's randomness is new in each
 * copy before any program runs, so there is no state and no moment in which an
 * old number comes. For libcrypto.so.3 and libcrypto.so.1.1.
 *
 * A program may load libcrypto late. So the functions that such programs call
 * first are defined here: each sets the method once and goes on to libcrypto's.
 *
 * Linked with no library and no symbol version, so that it loads with any glibc
 * and with musl.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* Missing where libdl is a library of its own, and not loaded. */
#pragma weak dlopen
#pragma weak dlsym
#pragma weak dlclose

struct rand_method {
  int (*seed)(const void* bytes, int size);
  int (*bytes)(unsigned char* to, int size);
  void (*cleanup)(void);
  int (*add)(const void* bytes, int size, double entropy);
  int (*pseudorand)(unsigned char* to, int size);
  int (*status)(void);
};

static int from_kernel(unsigned char* to, int size) {
  while (size > 0) {
    const long got = syscall(SYS_getrandom, to, (size_t)size, 0);
    if (got < 0) {
      if (errno == EINTR) continue;
      return 0;
    }
    to += got;
    size -= (int)got;
  }
  return 1;
}
static int take_seed(const void* bytes, int size) {
  (void)bytes;
  (void)size;
  return 1;
}
static int take_more(const void* bytes, int size, double entropy) {
  (void)entropy;
  return take_seed(bytes, size);
}
static int is_seeded(void) { return 1; }

static const struct rand_method kKernel = {
    .seed = take_seed,
    .bytes = from_kernel,
    .add = take_more,
    .pseudorand = from_kernel,
    .status = is_seeded,
};

static void* g_crypto; /* The library's handle, once it has the method. */
static void* g_ssl;

/* libcrypto, with its method set; null while none is loaded. */
static void* crypto(void) {
  static const char* const kNames[] = {"libcrypto.so.3", "libcrypto.so.1.1"};
  void* library = __atomic_load_n(&g_crypto, __ATOMIC_ACQUIRE);
  if (library != NULL || dlopen == NULL || dlsym == NULL) return library;
  for (size_t i = 0; i < 2 && library == NULL; ++i) {
    library = dlopen(kNames[i], RTLD_LAZY | RTLD_NOLOAD);
  }
  if (library == NULL) return NULL;
  int (*set)(const struct rand_method*) =
      (int (*)(const struct rand_method*))dlsym(library,
                                                "RAND_set_rand_method");
  /* Twice does no harm. */
  if (set != NULL) set(&kKernel);
  __atomic_store_n(&g_crypto, library, __ATOMIC_RELEASE);
  return library;
}

static void* ssl(void) {
  static const char* const kNames[] = {"libssl.so.3", "libssl.so.1.1"};
  void* library = __atomic_load_n(&g_ssl, __ATOMIC_ACQUIRE);
  crypto();
  if (library != NULL || dlopen == NULL) return library;
  for (size_t i = 0; i < 2 && library == NULL; ++i) {
    library = dlopen(kNames[i], RTLD_LAZY | RTLD_NOLOAD);
  }
  __atomic_store_n(&g_ssl, library, __ATOMIC_RELEASE);
  return library;
}

__attribute__((constructor)) static void at_load(void) { crypto(); }

/*
 * FORWARD(which library, type of the result, name, parameters, arguments): as
 * the library's function; 0 when that is not there.
 */
#define FORWARD(library, result, name, parameters, arguments)          \
  EXPORT result name parameters {                                      \
    void* const from = library();                                      \
    result(*next) parameters = NULL;                                   \
    if (from != NULL) next = (result(*) parameters)dlsym(from, #name); \
    return next == NULL ? (result)0 : next arguments;                  \
  }

FORWARD(crypto, int, RAND_bytes, (unsigned char* to, int size), (to, size))
FORWARD(crypto, int, RAND_priv_bytes, (unsigned char* to, int size), (to, size))
FORWARD(crypto, int, RAND_bytes_ex,
        (void* context, unsigned char* to, size_t size, unsigned strength),
        (context, to, size, strength))
FORWARD(crypto, int, RAND_priv_bytes_ex,
        (void* context, unsigned char* to, size_t size, unsigned strength),
        (context, to, size, strength))
FORWARD(crypto, int, RAND_status, (void), ())
FORWARD(crypto, int, OPENSSL_init_crypto,
        (unsigned long long options, const void* settings), (options, settings))
FORWARD(crypto, void*, EVP_PKEY_CTX_new_id, (int id, void* engine),
        (id, engine))
FORWARD(crypto, void*, EVP_PKEY_CTX_new, (void* key, void* engine),
        (key, engine))
FORWARD(crypto, void*, EVP_PKEY_CTX_new_from_name,
        (void* context, const char* name, const char* query),
        (context, name, query))
FORWARD(crypto, void*, EVP_PKEY_CTX_new_from_pkey,
        (void* context, void* key, const char* query), (context, key, query))
FORWARD(ssl, int, OPENSSL_init_ssl,
        (unsigned long long options, const void* settings), (options, settings))
FORWARD(ssl, void*, SSL_CTX_new, (const void* method), (method))
FORWARD(ssl, void*, SSL_CTX_new_ex,
        (void* context, const char* query, const void* method),
        (context, query, method))
