//go:build linux

package netlab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// CaptureConfig says what to look at and what to keep.
type CaptureConfig struct {
	// Match chooses frames, given with their Ethernet headers; nil is all. It runs on the capture's goroutine, and the
	// frame is borrowed until it returns.
	Match func(frame []byte) bool
	// File gets the matching frames in pcap format, for Wireshark; empty is none.
	File string
	// Keep is how many matching frames stay in memory for Frames; zero is 16.
	Keep int
}

// A Capture looks at the frames of links, of both directions, where the cable enters the lab: of an impaired link it
// sees what the host sends before it is impaired, and what the host gets after.
type Capture struct {
	cfg  CaptureConfig
	fds  []int
	wake wakeup
	done chan struct{}
	once sync.Once
	out  *os.File
	buf  *bufio.Writer

	mu      sync.Mutex
	seen    int
	matched int
	frames  [][]byte
	err     error
}

// Capture starts looking at the link. It ends with Stop or with the lab.
func (k *Link) Capture(cfg CaptureConfig) *Capture {
	k.lab.t.Helper()
	return k.lab.capture(cfg, k.lab.wire, k.ends[0].p.Attrs().Index)
}

// Capture starts looking at every link that there is, each frame once per link that it crosses.
func (l *Lab) Capture(cfg CaptureConfig) *Capture {
	l.t.Helper()
	var devices []int
	for _, k := range l.links {
		devices = append(devices, k.ends[0].p.Attrs().Index)
	}
	return l.capture(cfg, l.wire, devices...)
}

// Capture starts looking at a device of the host that is not a link's, such as a tunnel. Frames of a tunnel are IP
// packets without a header before them.
func (h *Host) Capture(device string, cfg CaptureConfig) *Capture {
	h.lab.t.Helper()
	dev, err := h.nl.LinkByName(device)
	h.lab.must(err, "%s: capture on %s", h.name, device)
	return h.lab.capture(cfg, h.ns, dev.Attrs().Index)
}

func (l *Lab) capture(cfg CaptureConfig, ns netns.NsHandle, devices ...int) *Capture {
	l.t.Helper()
	if cfg.Keep == 0 {
		cfg.Keep = 16
	}
	c := &Capture{cfg: cfg, done: make(chan struct{})}
	err := c.open(ns, devices)
	if err != nil {
		c.release()
		l.must(err, "capture")
	}
	go c.run()
	l.background(func() { c.Stop() })
	return c
}

func (c *Capture) open(ns netns.NsHandle, devices []int) (err error) {
	if c.wake, err = newWakeup(); err != nil {
		return err
	}
	if c.cfg.File != "" {
		if c.out, err = os.Create(c.cfg.File); err != nil {
			return err
		}
		c.buf = bufio.NewWriter(c.out)
		c.buf.Write(pcapHeader())
	}
	return within(ns, func() error {
		for _, index := range devices {
			fd, err := packetSocket(index, false)
			if err != nil {
				return err
			}
			c.fds = append(c.fds, fd)
		}
		return nil
	})
}

func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, frameBytes)
	var fds []unix.PollFd
	for _, fd := range append(c.fds, c.wake.fd) {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for {
		ended := c.wake.ended() // before the last look, so that what was sent before Stop is seen
		for _, fd := range c.fds {
			for {
				n, err := unix.Read(fd, buf)
				if err != nil {
					break
				}
				c.look(buf[:n], time.Now())
			}
		}
		if ended {
			return
		}
		wait(fds, time.Time{})
	}
}

func (c *Capture) look(frame []byte, now time.Time) {
	match := c.cfg.Match == nil || c.cfg.Match(frame)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if !match {
		return
	}
	c.matched++
	if len(c.frames) < c.cfg.Keep {
		c.frames = append(c.frames, append([]byte(nil), frame...))
	}
	if c.buf != nil {
		c.buf.Write(pcapRecord(len(frame), now))
		_, err := c.buf.Write(frame)
		c.err = errors.Join(c.err, err)
	}
}

// Seen returns how many frames were looked at, and how many of them matched.
func (c *Capture) Seen() (all, matched int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen, c.matched
}

// Frames returns the first matching frames.
func (c *Capture) Frames() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte(nil), c.frames...)
}

// Stop ends the capture when it has looked at everything sent before. It returns an error when frames were missed, for
// then it proves nothing about those, or when the file was not written.
func (c *Capture) Stop() error {
	c.once.Do(func() {
		c.wake.end()
		<-c.done
		for _, fd := range c.fds {
			stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			c.err = errors.Join(c.err, err)
			if err == nil && stats.Drops > 0 {
				c.err = errors.Join(c.err, fmt.Errorf("the capture missed %d frames", stats.Drops))
			}
		}
		c.err = errors.Join(c.err, c.release())
	})
	return c.err
}

func (c *Capture) release() (err error) {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	if c.wake.stop != nil {
		c.wake.close()
	}
	if c.out != nil {
		err = errors.Join(c.buf.Flush(), c.out.Close())
	}
	return err
}

// pcapHeader begins a file of Ethernet frames with times in nanoseconds: pcap(5), draft-ietf-opsawg-pcap.
func pcapHeader() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...) // time zone and accuracy, never used
	b = binary.LittleEndian.AppendUint32(b, frameBytes)
	return binary.LittleEndian.AppendUint32(b, 1)
}

func pcapRecord(size int, now time.Time) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(now.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(now.Nanosecond()))
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}
