// Keeps Node from drawing the same numbers in copies of a machine:
//
//   node --require /run/catnap/lib/node/catnap_reseed.js app.js
//
// V8's Math.random() and OpenSSL inside Node keep a state of their own, which a
// MicroVM that is forked has twice. From here on Math.random() and the functions
// of `crypto` that give random values ask the kernel for each, whose randomness
// is new in each copy before any program runs. No state, so no moment in which
// an old number comes. What OpenSSL draws for itself (TLS, key generation) is
// covered by libcatnap_reseed.so where Node uses the system's libcrypto.
'use strict';

const fs = require('fs');
const crypto = require('crypto');

// Kept open: a program may change its root, or run out of descriptors.
let device = -1;
try {
  device = fs.openSync('/dev/urandom', 'r');
} catch {
  // Another machine: all stays as it is.
}

function fill(buffer, offset, size) {
  for (let done = 0; done < size;) {
    done += fs.readSync(device, buffer, offset + done, size - done, null);
  }
}

function bytesOf(view) {
  return ArrayBuffer.isView(view)
      ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
      : new Uint8Array(view);
}

if (device >= 0) {
  const word = Buffer.alloc(8);
  Math.random = function random() {
    fill(word, 0, 7);
    // 53 bits, as many as fit.
    return (word.readUIntLE(0, 6) * 32 + (word[6] & 31)) / 2 ** 53;
  };

  // Arguments are checked by the originals, on views that they fill for nothing.
  const original = {
    randomFillSync: crypto.randomFillSync,
    randomBytes: crypto.randomBytes,
    randomFill: crypto.randomFill,
    getRandomValues: crypto.webcrypto.getRandomValues.bind(crypto.webcrypto),
  };

  function randomFillSync(buffer, offset, size) {
    original.randomFillSync.apply(crypto, arguments);
    const bytes = bytesOf(buffer);
    const width = buffer.BYTES_PER_ELEMENT || 1;
    const from = (offset || 0) * width;
    const to = size === undefined ? bytes.length : from + size * width;
    fill(bytes, from, to - from);
    return buffer;
  }
  function randomFill(buffer, offset, size, done) {
    if (typeof offset === 'function') [done, offset] = [offset, undefined];
    if (typeof size === 'function') [done, size] = [size, undefined];
    original.randomFill.call(crypto, buffer, offset || 0, (error) => {
      if (error) return done(error);
      try {
        randomFillSync(buffer, offset, size);
      } catch (thrown) {
        return done(thrown);
      }
      done(null, buffer);
    });
  }
  function randomBytes(size, done) {
    if (done === undefined) {
      const made = original.randomBytes.call(crypto, size);
      fill(made, 0, made.length);
      return made;
    }
    original.randomBytes.call(crypto, size, (error, made) => {
      if (error) return done(error);
      try {
        fill(made, 0, made.length);
      } catch (thrown) {
        return done(thrown);
      }
      done(null, made);
    });
  }
  function randomUUID() {
    const id = Buffer.alloc(16);
    fill(id, 0, 16);
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    const hex = id.toString('hex');
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16),
            hex.slice(16, 20), hex.slice(20)].join('-');
  }
  function randomInt(min, max, done) {
    if (max === undefined || typeof max === 'function') {
      [min, max, done] = [0, min, max];
    }
    // The original names what is wrong with them.
    if (!Number.isSafeInteger(min) || !Number.isSafeInteger(max) ||
        max <= min || max - min > 2 ** 48 - 1) {
      return originalRandomInt.call(crypto, min, max);
    }
    const range = max - min;
    const limit = 2 ** 48 - (2 ** 48 % range);
    const bits = Buffer.alloc(6);
    let value;
    do {
      fill(bits, 0, 6);
      value = bits.readUIntLE(0, 6);
    } while (value >= limit);
    const drawn = min + value % range;
    if (done === undefined) return drawn;
    process.nextTick(done, undefined, drawn);
  }
  const originalRandomInt = crypto.randomInt;
  function getRandomValues(view) {
    original.getRandomValues(view);
    const bytes = bytesOf(view);
    fill(bytes, 0, bytes.length);
    return view;
  }

  const replace = (object, functions) => {
    for (const [name, value] of Object.entries(functions)) {
      Object.defineProperty(
          object, name,
          {value, writable: true, configurable: true, enumerable: true});
    }
  };
  replace(crypto, {
    randomFillSync, randomFill, randomBytes, randomUUID, randomInt,
  });
  // crypto.getRandomValues is what this one has.
  replace(Object.getPrototypeOf(crypto.webcrypto),
          {getRandomValues, randomUUID});
  // `import {randomBytes} from 'crypto'` sees these, too.
  require('module').syncBuiltinESMExports();
}
