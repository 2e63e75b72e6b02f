package wireguard

import (
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A gate is a TUN device whose packets can be made to wait, in the kernel's queue, which holds queue of them. While a
// key changes WireGuard itself keeps 128 for each peer, a tenth of a second of one call's video, and drops what is older.
type gate struct {
	tun.Device
	mu      sync.Mutex
	changed *sync.Cond
	holds   int // who wants it shut
	ended   bool
}

func newGate(d tun.Device) *gate {
	g := &gate{Device: d}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// Read implements tun.Device. It looks at the gate after reading, so nothing passes that came after it was shut.
func (g *gate) Read(packets [][]byte, sizes []int, offset int) (int, error) {
	n, err := g.Device.Read(packets, sizes, offset)
	g.mu.Lock()
	for g.holds > 0 && !g.ended && err == nil {
		g.changed.Wait()
	}
	g.mu.Unlock()
	return n, err
}

// Close implements tun.Device.
func (g *gate) Close() error {
	g.mu.Lock()
	g.ended = true
	g.changed.Broadcast()
	g.mu.Unlock()
	return g.Device.Close()
}

func (g *gate) hold(n int) {
	g.mu.Lock()
	g.holds += n
	g.changed.Broadcast()
	g.mu.Unlock()
}

const (
	// queue is the length of the device's queue in the kernel, packets.
	queue = 4000
	// patience is how long packets wait for a handshake at most.
	patience = time.Second
	// again is when a handshake that was begun here and has no answer is begun anew; WireGuard waits for 5 s.
	again = 250 * time.Millisecond
	poll  = 5 * time.Millisecond
)

// hold makes packets wait until there was a handshake with each of the peers since now, at most for patience. Peers that
// come with more than their key are set up anew when they do not answer.
func (p *process) hold(peers []wgtypes.PeerConfig, now time.Time) {
	if len(peers) == 0 {
		return
	}
	p.gate.hold(+1)
	p.group.Go(func() {
		defer func() {
			p.gate.hold(-1)
			p.log.Info("packets waited for a change of keys", "peers", len(peers), "for", time.Since(now))
		}()
		tick := time.NewTicker(poll)
		defer tick.Stop()
		for tried := now; time.Since(now) < patience; {
			select {
			case <-p.d.Wait():
				return
			case <-tick.C:
			}
			d, err := p.device()
			if err != nil {
				return
			}
			shaken := map[wgtypes.Key]bool{}
			for _, q := range d.Peers {
				shaken[q.PublicKey] = q.LastHandshakeTime.After(now)
			}
			missing := 0
			var c wgtypes.Config
			for _, q := range peers {
				if !shaken[q.PublicKey] {
					missing++
					if q.Endpoint != nil {
						c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: q.PublicKey, Remove: true}, q)
					}
				}
			}
			if missing == 0 {
				return
			}
			if time.Since(tried) >= again {
				tried = time.Now()
				_ = p.configure(c)
			}
		}
	})
}
