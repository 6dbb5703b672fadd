#ifndef CATNAP_EXPORT_H_
#define CATNAP_EXPORT_H_

// CATNAP_EXPORT marks what a shared libcatnap shows. Everything else is built
// with hidden visibility.
#if defined(__GNUC__)
#define CATNAP_EXPORT __attribute__((visibility("default")))
#else
#define CATNAP_EXPORT
#endif

#endif  // CATNAP_EXPORT_H_
