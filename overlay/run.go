package overlay

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"plenum/overlay/roster"
)

// Options are what the process is started with; everything else is in overlay.json.
type Options struct {
	// Root is put before every path, for tests and for hosts within a host.
	Root string
	// ProbeEvery is how often each path is probed once it is up, as long as there are 25 peers at most; of more
	// each is probed more seldom. More often finds loss sooner and costs more; the default is 5 s.
	ProbeEvery time.Duration
	// Log is where it says what it does.
	Log *slog.Logger
	// Backends are the ways to make a plane, by their name in overlay.json.
	Backends map[string]func(*slog.Logger) Backend
}

// Flags registers the options that the command line may set.
func (o *Options) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Root, "root", o.Root, "folder that stands for / in every path")
	f.DurationVar(&o.ProbeEvery, "probe-every", 5*time.Second, "how often each path is measured")
}

// ConfigFile, StateFile and Socket are the paths of the process, below Root.
func (o *Options) ConfigFile() string {
	return filepath.Join("/", o.Root, "var/lib/plenum/overlay.json")
}
func (o *Options) StateFile() string { return filepath.Join("/", o.Root, "var/lib/plenum/roster.json") }
func (o *Options) Socket() string    { return filepath.Join("/", o.Root, "run/plenum/overlay.sock") }

// readers are Nebula's threads that wait in system calls, one for the device and one for the underlay. Each keeps a place in
// Go's scheduler meanwhile; without places for them WireGuard would wait until the runtime notices.
const readers = 2

// gcPercent is less than Go's own 100: most of the heap are wireguard-go's buffers, 64 KiB for each of some 400 packets
// under way, which live as long as the process. Collecting them more often costs next to nothing.
const gcPercent = 30

// Run brings both planes up and keeps them up until ctx is cancelled; then it closes the tunnels and leaves the
// devices and the guard behind, so that nothing finds another way. SIGHUP makes it read overlay.json again.
// It owns every goroutine it starts.
//
//	sources ──────────────┐
//	sockets ──────────────┼─► inbox ─► engine (one goroutine: backends, paths, peers)
//	/status, /metrics ────┤
//	SIGHUP, ticker ───────┘
func Run(ctx context.Context, o Options) error {
	if o.ProbeEvery <= 0 {
		o.ProbeEvery = 5 * time.Second
	}
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + readers)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	cfg, err := Load(o.ConfigFile())
	if err != nil {
		return err
	}
	p := &process{o: o, log: o.Log, inbox: make(chan func(), 256)}
	p.engine = newEngine(cfg, &p.o, p)
	if err := p.engine.book.Restore(o.StateFile()); err != nil {
		p.log.Warn("remembered records", "err", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.ctx = ctx
	if err := p.engine.start(time.Now()); errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: the overlay needs root, or the capability CAP_NET_ADMIN", err)
	} else if err != nil {
		return err
	}
	server, err := p.serve(cfg)
	if err != nil {
		return errors.Join(err, p.engine.stop())
	}
	p.watch(cfg)

	tick := time.NewTicker(often)
	defer tick.Stop()
	every := often
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case f := <-p.inbox:
			f()
		case <-hup:
			p.reload()
		case now := <-tick.C:
			p.slack.adjust(now)
			if next := p.engine.tick(now); next != every {
				every = next
				tick.Reset(every)
			}
		}
	}
	// Nothing new may come in, then the tunnels go, then whoever still posts is let go.
	server()
	p.stopSources()
	cancel()
	err = p.engine.stop()
	done := make(chan struct{})
	go func() { p.group.Wait(); close(done) }()
	for {
		select {
		case <-p.inbox: // nobody is interested any more
		case <-done:
			return err
		}
	}
}

// process is the shell around the engine: sockets, sources, signals and servers.
type process struct {
	o      Options
	log    *slog.Logger
	engine *engine
	ctx    context.Context
	group  sync.WaitGroup
	inbox  chan func() // run on the engine's goroutine
	slack  slack

	sources context.CancelFunc
	watched RosterConfig
}

// post hands f to the engine's goroutine. It waits when the engine is behind: sockets then drop in the kernel.
func (p *process) post(f func()) {
	select {
	case p.inbox <- f:
	case <-p.ctx.Done():
	}
}

// reload reads overlay.json again. A file that is wrong changes nothing.
func (p *process) reload() {
	cfg, err := Load(p.o.ConfigFile())
	if err != nil {
		p.log.Error("configuration not reloaded", "err", err)
		p.engine.problem("configuration", err)
		return
	}
	p.engine.problem("configuration", nil)
	p.engine.apply(cfg, time.Now())
	p.watch(cfg)
	p.log.Info("configuration reloaded")
}

// watch starts the sources of records, unless they are the same as before.
func (p *process) watch(cfg Config) {
	if p.sources != nil {
		if p.watched.File == cfg.Roster.File && p.watched.Consul == cfg.Roster.Consul && p.watched.Token == cfg.Roster.Token {
			return
		}
		p.stopSources()
	}
	p.watched = cfg.Roster
	ctx, cancel := context.WithCancel(p.ctx)
	p.sources = cancel
	all := map[string]roster.Source{}
	if f := cfg.Roster.File; f != "" {
		all["file"] = roster.File{Path: f}
	}
	if a := cfg.Roster.Consul; a != "" {
		all["consul"] = roster.Consul{Address: a, TokenFile: cfg.Roster.Token}
	}
	for name, s := range all {
		p.group.Go(func() {
			s.Watch(ctx, func(l roster.Listing, err error) {
				p.post(func() {
					if ctx.Err() == nil {
						p.engine.listing(name, l, err, time.Now())
					}
				})
			})
		})
	}
}

func (p *process) stopSources() {
	if p.sources != nil {
		p.sources()
	}
}

// open opens the overlay's socket on a plane and reads it until it is closed.
func (p *process) open(plane Plane, c *PlaneConfig) (*net.UDPConn, error) {
	conn, err := listen(p.ctx, c.Device, c.Address)
	if err != nil {
		return nil, fmt.Errorf("probes on %s: %w", plane, err)
	}
	p.group.Go(func() {
		b := make([]byte, maxMessage)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // a peer's ICMP error
			}
			m, err := parseMessage(b[:n])
			if err != nil {
				continue
			}
			m.body = append([]byte(nil), m.body...)
			size, at := n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			p.post(func() { p.engine.receive(plane, at, m, size, time.Now()) })
		}
	})
	return conn, nil
}
