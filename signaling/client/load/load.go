// Package load is scenarios that put a signaling server under load and measure what that costs it: a
// crowd that joins one room at once, and sessions that do nothing. The server is another process, ours or
// any other with a MUC behind an XMPP WebSocket; its processor time and memory are read from /proc.
//
// The clients are package count's, so that the machine's time goes to the server and not to them.
package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"plenum/signaling/client/count"
)

// A Usage is what a process has used until now.
type Usage struct {
	CPU  time.Duration // user and system, in steps of 10 ms
	RSS  int64         // resident memory, bytes
	Peak int64         // the most that it ever was
}

// Measure reads the usage of a process. Linux only.
func Measure(pid int) (Usage, error) {
	var u Usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The second field, the name, may hold blanks; it ends with the last parenthesis (proc(5)).
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("load: /proc/%d/stat has %d fields", pid, len(fields))
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(n) * tick
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			u.RSS = kib << 10
		case "VmHWM":
			u.Peak = kib << 10
		}
	}
	return u, nil
}

// atOnce is how many logins are under way at a time.
const atOnce = 64

// dialAll logs n clients in; make says what client i, from 1, is like. On error nobody is left.
func dialAll(ctx context.Context, n int, config func(i int) count.Config) ([]*count.Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([]*count.Client, n)
	turns := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range all {
		turns <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turns }()
			c, err := count.Dial(ctx, config(i+1))
			if err != nil {
				cancel(err)
				return
			}
			all[i] = c
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		for _, c := range all {
			if c != nil {
				c.Close()
			}
		}
		return nil, context.Cause(ctx)
	}
	return all, nil
}

// A Storm is a crowd that joins one room at once.
type Storm struct {
	Client count.Config // of each; Nick and Crowd are filled in
	Crowd  int
	PID    int // the server
}

// A StormResult is what a storm cost.
type StormResult struct {
	Crowd      int
	Before     Usage         // everybody is logged in, nobody in the room
	After      Usage         // everybody has the whole roster
	Deliveries int64         // presences that came to the clients
	Bytes      int64         // all that came
	Wall       time.Duration // from the first join to the last complete roster
	LoginWall  time.Duration // to log everybody in
	LoginCPU   time.Duration
}

// PerDelivery is the server's processor time for one delivered presence.
func (r StormResult) PerDelivery() time.Duration {
	return (r.After.CPU - r.Before.CPU) / time.Duration(max(r.Deliveries, 1))
}

func (r StormResult) String() string {
	return fmt.Sprintf("%d in a room: %.2f µs of CPU per delivered presence (%d of them, %d bytes each), %.2f s to the last complete roster, %.0f MB before, %.0f MB after, %.0f MB at most; login %.2f ms of CPU each",
		r.Crowd, float64(r.PerDelivery())/1e3, r.Deliveries, r.Bytes/max(r.Deliveries, 1), r.Wall.Seconds(),
		mb(r.Before.RSS), mb(r.After.RSS), mb(r.After.Peak), r.LoginCPU.Seconds()*1e3/float64(r.Crowd))
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// Run logs the crowd in, lets it join at once, waits until everybody has seen everybody, and ends it.
func (s Storm) Run(ctx context.Context) (StormResult, error) {
	r := StormResult{Crowd: s.Crowd}
	idle, err := Measure(s.PID)
	if err != nil {
		return r, err
	}
	began := time.Now()
	all, err := dialAll(ctx, s.Crowd, func(i int) count.Config {
		c := s.Client
		c.Nick, c.Crowd = uint32(i), s.Crowd
		return c
	})
	if err != nil {
		return r, err
	}
	r.LoginWall = time.Since(began)
	if r.Before, err = Measure(s.PID); err != nil {
		return r, err
	}
	r.LoginCPU = r.Before.CPU - idle.CPU

	var wg sync.WaitGroup
	failed := make([]error, len(all))
	last := make([]time.Time, len(all))
	began = time.Now()
	for i, c := range all {
		wg.Go(func() {
			if failed[i] = c.Join(); failed[i] == nil {
				failed[i] = c.Until(ctx, c.Complete)
			}
			last[i] = time.Now()
		})
	}
	wg.Wait()
	for i, c := range all {
		n := c.Counts()
		r.Deliveries += n.Presences
		r.Bytes += n.Bytes
		r.Wall = max(r.Wall, last[i].Sub(began))
	}
	r.After, err = Measure(s.PID)
	for _, c := range all {
		wg.Go(c.Leave)
	}
	wg.Wait()
	return r, errors.Join(append(failed, err)...)
}

// Idle is many sessions that have logged in and do nothing.
type Idle struct {
	Client   count.Config
	Sessions int
	// PerRoom puts so many at a time into a room; 0: they are in none.
	PerRoom int
	PID     int
	// Settle is how long to wait before memory is read: a collector gives back what it does not need.
	Settle time.Duration
}

// An IdleResult is what sessions that do nothing cost.
type IdleResult struct {
	Sessions      int
	Before, After Usage
	LoginWall     time.Duration
	IdleCPU       float64 // cores, while settling
}

// PerSession is the resident memory of one session.
func (r IdleResult) PerSession() int64 {
	return (r.After.RSS - r.Before.RSS) / int64(max(r.Sessions, 1))
}

func (r IdleResult) String() string {
	return fmt.Sprintf("%d idle sessions: %.1f kB each (%.0f MB before, %.0f MB after, %.0f MB at most), logged in at %.0f a second, %.0f µs of CPU each, %.3f cores when idle",
		r.Sessions, float64(r.PerSession())/1e3, mb(r.Before.RSS), mb(r.After.RSS), mb(r.After.Peak),
		float64(r.Sessions)/r.LoginWall.Seconds(), float64(r.After.CPU-r.Before.CPU)/1e3/float64(r.Sessions), r.IdleCPU)
}

// Run makes the sessions, lets them rest, and ends them.
func (s Idle) Run(ctx context.Context) (IdleResult, error) {
	r := IdleResult{Sessions: s.Sessions}
	var err error
	if r.Before, err = Measure(s.PID); err != nil {
		return r, err
	}
	began := time.Now()
	all, err := dialAll(ctx, s.Sessions, func(i int) count.Config {
		c := s.Client
		c.Nick, c.Crowd = uint32(i), 0
		neighbours := 1000 // no address opens thousands of connections, or hundreds of rooms
		if s.PerRoom > 0 {
			c.Room = fmt.Sprint("idle-", i/s.PerRoom)
			neighbours = min(neighbours, 90*s.PerRoom)
		}
		c.From = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/neighbours%250))}
		return c
	})
	if err != nil {
		return r, err
	}
	defer func() {
		for _, c := range all {
			c.Leave()
		}
	}()
	if s.PerRoom > 0 {
		for _, c := range all {
			if err := c.Join(); err != nil {
				return r, err
			}
		}
	}
	r.LoginWall = time.Since(began)
	rested, err := Measure(s.PID)
	if err != nil {
		return r, err
	}
	var wg sync.WaitGroup
	rest, cancel := context.WithTimeout(ctx, s.Settle)
	defer cancel()
	for _, c := range all { // what comes is read and acknowledged, as by any client
		wg.Go(func() { _ = c.Until(rest, func(count.Counts) bool { return false }) })
	}
	wg.Wait()
	if r.After, err = Measure(s.PID); err != nil {
		return r, err
	}
	r.IdleCPU = (r.After.CPU - rested.CPU).Seconds() / s.Settle.Seconds()
	return r, ctx.Err()
}
