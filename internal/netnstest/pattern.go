package netnstest

import "fmt"

// patternByte is the byte at an offset of the pattern. Its period is longer than any connection, so that what is missing,
// doubled or moved is noticed.
func patternByte(offset int64) byte {
	x := uint64(offset) * 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	return byte(x >> 56)
}

// pattern is n bytes of the pattern.
func pattern(offset int64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = patternByte(offset + int64(i))
	}
	return b
}

// Send writes the next n bytes of the pattern that Damage looks for.
func (c *Conn) Send(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writeLocked(pattern(c.sent.Load(), n))
}

// Sent is the number of bytes that the kernel has taken from this end.
func (c *Conn) Sent() int64 { return c.sent.Load() }

// Damage is nil while all that has arrived is what Send, Stream and Busy send, without a gap. An end whose peer uses
// Write is damaged.
func (c *Conn) Damage() error {
	if at := c.damaged.Load(); at > 0 {
		return fmt.Errorf("%s: byte %d of %d is not the one that was sent", c, at-1, c.Received())
	}
	return nil
}

// inspect looks at what has arrived after the first offset bytes.
func (c *Conn) inspect(offset int64, b []byte) {
	if c.damaged.Load() > 0 {
		return
	}
	for i := range b {
		if b[i] != patternByte(offset+int64(i)) {
			c.damaged.Store(offset + int64(i) + 1)
			return
		}
	}
}
