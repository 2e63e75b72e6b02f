package bridge

import "time"

const (
	// Video is held back when more than uplinkMost of the uplink is used, and let go again, half of the way in a second and
	// by uplinkGrowth at most, while less than uplinkLeast is.
	uplinkMost, uplinkLeast = 0.98, 0.9
	uplinkAim               = 0.94
	uplinkGrowth            = 1.3
	// freeCeiling limits nobody, in bit/s.
	freeCeiling = 100_000_000
)

// An uplink keeps what the bridge sends within what it may: by a ceiling for what each receiver gets, the same for all, so
// that those who get much give first. Sound is not held back.
type uplink struct {
	at      time.Time
	sent    uint64 // bytes as the network counts them
	ceiling int64  // bit/s; 0 none
}

// next measures what was sent since the last call, and returns the ceiling for so many receivers; most is the uplink in
// bit/s. at is when sent was counted.
func (u *uplink) next(at time.Time, sent, most uint64, receivers int) int64 {
	dt := at.Sub(u.at).Seconds()
	first := u.at.IsZero() || sent < u.sent
	if !first && dt <= 0 {
		return u.ceiling
	}
	rate := float64(8*(sent-min(u.sent, sent))) / dt
	u.at, u.sent = at, sent
	share := rate / float64(most)
	switch {
	case first || receivers == 0 || most == 0:
	case share > uplinkMost:
		if u.ceiling == 0 { // a fair share; who needs less leaves room to others
			u.ceiling = max(int64(uplinkAim*float64(most))/int64(receivers), 1)
		} else {
			u.ceiling = max(int64(float64(u.ceiling)*uplinkAim/share), 1)
		}
	case share < uplinkLeast && u.ceiling != 0:
		grown := min((1+uplinkAim/max(share, 0.1))/2, uplinkGrowth)
		if u.ceiling = int64(grown*float64(u.ceiling)) + 1; u.ceiling > freeCeiling {
			u.ceiling = 0
		}
	}
	return u.ceiling
}

// limit applies the uplink to all conferences.
func (b *Bridge) limit(u *uplink, conferences []*live, receivers int) {
	if b.cfg.Uplink == 0 {
		return
	}
	at, sent := b.media.sent()
	before := u.ceiling
	ceiling := u.next(at, sent, b.cfg.Uplink, receivers)
	if ceiling == 0 && before == 0 {
		return
	}
	for _, l := range conferences { // each time: there may be new ones
		l.do(func(now time.Time) { l.conf.SetCeiling(ceiling, now) })
	}
}

// sent is how many bytes all cores have sent, as the network counts them, and when they were counted.
func (m *media) sent() (at time.Time, bytes uint64) {
	for _, c := range m.cores {
		if p := c.published.Load(); p != nil {
			bytes += p.Out.Bytes + datagramOverhead*p.Out.Datagrams
			if p.At.After(at) {
				at = p.At
			}
		}
	}
	return at, bytes
}
