package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"plenum/agent/join"
)

// Options are what plenum run agent is started with; everything else is in plenum.hcl and in what the join service
// said.
type Options struct {
	// Root is put before every path, for tests and for hosts within a host.
	Root string
	// Release is of this binary, told to the catalog.
	Release string
	// Log is where it says what it does.
	Log *slog.Logger
	// Now is the host's clock. Default time.Now.
	Now func() time.Time
}

// Flags registers the options that the command line may set.
func (o *Options) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Root, "root", o.Root, "folder that stands for / in every path")
}

// Run keeps a host what it should be until ctx is cancelled: it observes, plans and applies every few seconds, renews
// certificates, registers the host and, on server hosts, runs the join service. What it started goes on without it.
func Run(ctx context.Context, o Options) error {
	debug.SetGCPercent(50) // it allocates little and lives long: memory before speed
	if o.Now == nil {
		o.Now = wallClock
	}
	w, err := newWork(o.Root)
	if err != nil {
		return err
	}
	if !w.joined() {
		return errors.New("this host is in no cluster: plenum init or plenum join TOKEN first")
	}
	for _, u := range w.units() {
		if u.Name == "plenum-agent" {
			if err := w.host.Services().Adopt(u); err != nil {
				return err
			}
		}
	}
	w.log, w.release = o.Log, o.Release
	w.say = func(format string, args ...any) { o.Log.Info(fmt.Sprintf(format, args...)) }
	l := &loop{o: o, work: w, log: o.Log, metrics: newMetrics()}
	a := w.answer
	l.answer.Store(&a)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.keep(ctx) })
	g.Go(func() error { return l.serve(ctx) })
	g.Go(func() error { return l.register(ctx) })
	if slices.Contains(a.Roles, join.RoleServer) {
		g.Go(func() error { return l.joinService(ctx) })
	}
	err = g.Wait()
	l.down()
	return err
}

// A loop is the agent's process.
type loop struct {
	o       Options
	work    *work // of keep's goroutine; its facts, configuration and host do not change
	log     *slog.Logger
	metrics *metrics
	answer  atomic.Pointer[join.Answer] // what the other goroutines see
	healthy atomic.Bool                 // the last look found nothing wrong

	// of keep's goroutine
	notBefore time.Time // the next try to renew
	renewErr  error     // of the last one
	estranged estranged
	clockNext time.Time     // the next look at others' clocks
	clockErr  error         // of the last one
	offset    time.Duration // this host's clock less the cluster's

	generation generation
}

// keep observes, plans and applies.
func (l *loop) keep(ctx context.Context) error {
	tick := time.NewTicker(duration(l.work.cfg.Every))
	defer tick.Stop()
	said := ""
	for {
		err := l.look(ctx)
		l.healthy.Store(err == nil)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errLeft):
			return err
		case err == nil:
			said = ""
		case err.Error() != said: // once, not every few seconds
			said = err.Error()
			l.metrics.failures.Inc()
			l.log.Warn("the host is not what it should be", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// errLeft ends the agent of a host that took leave.
var errLeft = errors.New("the host has left its cluster")

// look is one turn. A command that works on the host goes first.
func (l *loop) look(ctx context.Context) error {
	lock, err := l.work.host.Lock(lockFile, false)
	if err != nil {
		return nil // the next turn will do
	}
	defer lock.Close()
	w := l.work
	if err := w.reload(); err != nil {
		return err
	}
	if !w.joined() {
		return errLeft
	}
	renewErr := l.renew(ctx)
	d := w.desired()
	d.Services = slices.DeleteFunc(d.Services, func(s Service) bool { return s.Name == "plenum-agent" }) // that is us
	n, err := w.apply(ctx, d.only("plenum-overlay"))
	if err == nil && n > 0 { // after a boot the others find no address before the networks are up
		_ = w.until(ctx, "the encrypted networks", 10*time.Second, func(ctx context.Context) error {
			return overlayUp(ctx, w.host.Root(), join.Answer{})
		})
	}
	if err == nil {
		var more int
		more, err = w.apply(ctx, d)
		n += more
	}
	l.metrics.steps.Add(float64(n))
	if err == nil && w.is(join.RoleServer) {
		err = w.unseal(ctx)
	}
	if err == nil {
		err = l.gossip(ctx)
	}
	a := w.answer
	l.answer.Store(&a)
	l.metrics.certificate.Set(a.CertificateTo.Sub(l.now()).Seconds())
	return errors.Join(err, renewErr, l.clock(ctx), l.back(ctx))
}

// gossip keeps this host's gossip key the cluster's.
func (l *loop) gossip(ctx context.Context) error {
	c, err := local(l.work.host)
	if err != nil {
		return err
	}
	leader := consulLeader(ctx, c)
	if leader == nil {
		err = l.work.follow()
	}
	if l.estranged.due(leader == nil, time.Now()) && len(l.work.others()) > 0 {
		err = l.work.rekey(ctx)
	}
	return err
}

// serve answers /metrics and /healthz on the control plane, which comes and goes.
func (l *loop) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(l.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !l.healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	address := netip.AddrPortFrom(l.answer.Load().Control.Addr(), Metrics).String()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	for {
		n, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err == nil {
			_ = s.Serve(n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// joinService lets hosts in, for as long as this host is a server.
func (l *loop) joinService(ctx context.Context) error {
	w, err := newWork(l.o.Root) // its own: keep's is keep's
	if err != nil {
		return err
	}
	for {
		s, err := join.New(w.service(l.log))
		if err == nil {
			err = s.Run(ctx)
			_ = s.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		l.log.Error("join service", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// metrics of the agent.
type metrics struct {
	registry    *prometheus.Registry
	steps       prometheus.Counter
	failures    prometheus.Counter
	renewals    *prometheus.CounterVec
	certificate prometheus.Gauge
	clock       prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(),
		steps:    prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_agent_steps_total", Help: "Steps taken to put the host right."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_agent_failures_total", Help: "Different reasons why the host could not be put right."}),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "plenum_agent_renewals_total", Help: "Renewals of certificates and tokens, by result."}, []string{"result"}),
		certificate: prometheus.NewGauge(prometheus.GaugeOpts{Name: "plenum_agent_certificate_seconds",
			Help: "Seconds that are left of this host's certificate; below zero when it has expired."}),
		clock: prometheus.NewGauge(prometheus.GaugeOpts{Name: "plenum_agent_clock_offset_seconds", Help: "This host's clock less the cluster's, by the join service that answered last."}),
	}
	m.registry.MustRegister(m.steps, m.failures, m.renewals, m.certificate, m.clock)
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "plenum_agent_resident_bytes", Help: "Memory of this process."}, resident))
	return m
}

// resident is the process's RSS, bytes.
func resident() float64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseFloat(fields[1], 64)
	return pages * float64(os.Getpagesize())
}
