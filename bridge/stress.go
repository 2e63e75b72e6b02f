package bridge

import (
	"bytes"
	"os"
	"strconv"
	"time"
)

const (
	// A bridge is full, its stress 1, when this share of the machine's processors is busy, when the busiest core is with
	// packets for this share of the time, or when this share of its uplink is in use. Delay and loss begin above.
	fullMachine, fullCore, fullUplink = 0.9, 0.85, 0.95

	loadInterval = 5 * time.Second

	// datagramOverhead is what IPv4 and UDP add to a datagram, in bytes.
	datagramOverhead = 28
)

// A stress is how full the bridge is, 1 being full, by each of the things that it may run out of.
type stress struct {
	Machine float64 `json:"machine"` // processors, whoever uses them
	Core    float64 `json:"core"`    // the time of the busiest core, which is what packets cost
	Uplink  float64 `json:"uplink"`  // the configured one
}

// most is what the bridge runs out of first.
func (s stress) most() float64 { return max(s.Machine, s.Core, s.Uplink) }

// load measures stress over each loadInterval.
type load struct {
	measured           time.Time
	total, idle, steal uint64 // of the machine, from /proc/stat
	busy               []time.Duration
	sent               uint64 // bytes, as the network counts them
	dropped            uint64
	stress             stress
	stolen             float64
}

// measure returns stress and the stolen share, of the last loadInterval. The uplink is in bit/s.
func (l *load) measure(now time.Time, media mediaStats, uplink uint64) (stress, float64) {
	dt := now.Sub(l.measured)
	if dt < loadInterval {
		return l.stress, l.stolen
	}
	first := l.measured.IsZero()
	l.measured = now

	var s stress
	var busy []time.Duration
	var sent uint64
	for i := range media.Cores {
		c := &media.Cores[i]
		busy = append(busy, c.Busy)
		sent += c.Out.Bytes + datagramOverhead*c.Out.Datagrams
		var before time.Duration
		if i < len(l.busy) {
			before = l.busy[i]
		}
		s.Core = max(s.Core, (c.Busy-before).Seconds()/dt.Seconds()/fullCore)
	}
	if media.SocketDrops > l.dropped { // it was too late already
		s.Core = max(s.Core, 1)
	}
	if uplink > 0 {
		s.Uplink = float64(8*(sent-min(l.sent, sent))) / dt.Seconds() / float64(uplink) / fullUplink
	}
	l.busy, l.sent, l.dropped = busy, sent, media.SocketDrops

	var stolen float64
	if data, err := os.ReadFile("/proc/stat"); err == nil { // where there is none, the machine counts as idle
		total, idle, steal, ok := parseStat(data)
		if d := total - l.total; ok && total > l.total {
			s.Machine = (1 - float64(idle-min(l.idle, idle))/float64(d)) / fullMachine
			stolen = float64(steal-min(l.steal, steal)) / float64(d)
		}
		l.total, l.idle, l.steal = total, idle, steal
	}
	if !first {
		l.stress, l.stolen = s, stolen
	}
	return l.stress, l.stolen
}

// parseStat reads the first line of /proc/stat, in ticks: user nice system idle iowait irq softirq steal.
// Waiting for a disk is idle; stolen time is not ours to use and counts as busy.
func parseStat(data []byte) (total, idle, steal uint64, ok bool) {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return 0, 0, 0, false
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return 0, 0, 0, false
		}
		total += n
		switch i {
		case 3, 4:
			idle += n
		case 7:
			steal = n
		}
	}
	return total, idle, steal, true
}
