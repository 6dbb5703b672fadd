#ifndef CATNAP_LIB_VMM_GUEST_SOCKETS_H_
#define CATNAP_LIB_VMM_GUEST_SOCKETS_H_

#include "virtio/vsock/vsock.h"

namespace catnap::vmm {

// A guest's sockets as the layers above see them: byte streams to and from its
// processes, whatever device carries them.
using GuestSockets = virtio::Vsock;
using GuestSocketHandler = virtio::VsockHandler;
using GuestSocketId = virtio::VsockStreamId;

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_GUEST_SOCKETS_H_
