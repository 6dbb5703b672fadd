// Of lib/guest/helpers/node, which node loads before this (--require).
'use strict';
const assert = require('assert');
const crypto = require('crypto');

let sum = 0;
for (let i = 0; i < 10000; ++i) {
  const drawn = Math.random();
  assert(drawn >= 0 && drawn < 1);
  sum += drawn;
}
assert(Math.abs(sum / 10000 - 0.5) < 0.05);
// From the kernel, and from nothing else.
assert(!/native code/.test(Math.random.toString()));

assert.match(crypto.randomUUID(),
             /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
assert.notStrictEqual(crypto.randomUUID(), crypto.randomUUID());
assert.strictEqual(crypto.randomBytes(100).length, 100);
assert.notDeepStrictEqual(crypto.randomBytes(16), crypto.randomBytes(16));
const part = crypto.randomFillSync(Buffer.alloc(32), 8, 16);
assert(part.subarray(0, 8).every((byte) => byte === 0));
assert(part.subarray(24).every((byte) => byte === 0));
assert(!part.subarray(8, 24).every((byte) => byte === 0));
assert(crypto.webcrypto.getRandomValues(new Uint32Array(64)).some((n) => n));
assert.throws(() => crypto.randomInt(5, 5), {code: 'ERR_OUT_OF_RANGE'});
assert.throws(() => crypto.randomBytes(-1), {code: 'ERR_OUT_OF_RANGE'});
const seen = new Set();
for (let i = 0; i < 1000; ++i) seen.add(crypto.randomInt(3, 8));
assert.deepStrictEqual([...seen].sort(), [3, 4, 5, 6, 7]);

let called = 0;
crypto.randomBytes(8, (error, bytes) => {
  assert(!error && bytes.length === 8);
  ++called;
});
crypto.randomFill(new Uint16Array(4), (error, view) => {
  assert(!error && view.length === 4);
  ++called;
});
crypto.randomInt(10, (error, drawn) => {
  assert(!error && drawn < 10);
  ++called;
});
process.on('exit', () => assert.strictEqual(called, 3));
