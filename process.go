package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"

	"plenum/bridge/udp"
)

// stopLimit bounds how long a stop may take from signal to exit.
const stopLimit = 5 * time.Second

// processOptions are the flags of everything that serves: dev, run signaling, run bridge.
type processOptions struct {
	config, readyFile   string
	metrics             string
	logLevel, logFormat string
}

var processSettings = []setting{{"log-level", "log", "level"}, {"log-format", "log", "format"}}

func (o *processOptions) flags(f *pflag.FlagSet, metrics string) {
	f.StringVar(&o.config, "config", "", "configuration `FILE` (HCL); flags and environment win over it")
	f.StringVar(&o.metrics, "metrics", metrics, "`ADDR` of /metrics and /debug")
	f.StringVar(&o.readyFile, "ready-file", "", "write the addresses in use as JSON to `PATH` when everything listens")
	f.StringVar(&o.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
}

// An address is the value of a flag that takes ADDR:PORT.
type address struct {
	flag, value, example string
	optional             bool
}

func checkAddresses(all ...address) error {
	for _, a := range all {
		if a.value == "" && a.optional {
			continue
		}
		if err := checkAddress(a.value); err != nil {
			return fmt.Errorf("--%s %s: want ADDR:PORT, for example %s: %w", a.flag, a.value, a.example, err)
		}
	}
	return nil
}

func checkAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		var reason *net.AddrError
		if errors.As(err, &reason) {
			return errors.New(reason.Err)
		}
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %s is not a number below 65536", port)
	}
	return nil
}

// newLogger writes to w; level and format are the flags' values.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %s: want debug, info, warn or error", level)
	}
	o.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return nil, fmt.Errorf("--log-format %s: want text or json", format)
}

// inUse turns a busy port into advice; pairs are flags with their addresses.
func inUse(err error, pairs ...string) error {
	if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, udp.ErrInUse) {
		return err
	}
	var op *net.OpError
	for i := 0; i+1 < len(pairs); i += 2 {
		flag, address := pairs[i], pairs[i+1]
		if errors.As(err, &op) && op.Addr != nil && op.Addr.String() == address || flag == "media" && errors.Is(err, udp.ErrInUse) {
			if address == "" {
				address = "a port for media, 10000 or one after it,"
			}
			return fmt.Errorf("%s is in use: stop the program that has it, or choose another address with --%s", address, flag)
		}
	}
	return err
}

// A readyFile says where everything listens; programs that start plenum read it.
type readyFile struct {
	HTTP       string        `json:"http"`
	WS         string        `json:"ws"`
	XMPP       string        `json:"xmpp"`
	Media      string        `json:"media"`
	BridgeHTTP string        `json:"bridge_http"`
	Metrics    string        `json:"metrics"`
	Domain     string        `json:"domain"`
	PID        int           `json:"pid"`
	Bridges    []readyBridge `json:"bridges"`
}

type readyBridge struct {
	Media      string `json:"media"`
	BridgeHTTP string `json:"bridge_http"`
	RelayID    string `json:"relay_id"`
}

// write writes the file whole, so that who sees it can read all of it.
func (r readyFile) write(path string) error {
	r.PID = os.Getpid()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("--ready-file %s: %w", path, err)
	}
	return nil
}

// An operators' side is what a process serves to nobody else: metrics, debug state, profiles.
type operators struct {
	registry *prometheus.Registry
	listener net.Listener
	server   *http.Server
	heard    []string // arguments of plenum that find out whether people are heard; nil: nothing does
}

func newOperators(addr string) (*operators, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, inUse(err, "metrics", addr)
	}
	o := &operators{registry: prometheus.NewRegistry(), listener: l, server: &http.Server{ReadHeaderTimeout: 5 * time.Second}}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "plenum_info", Help: "1, with the release of this process.",
		ConstLabels: prometheus.Labels{"release": version()}})
	info.Set(1)
	o.registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return o, nil
}

func (o *operators) url() string { return "http://" + o.listener.Addr().String() }

// serve answers until Close; debug is what /debug/ shows, nil for nothing.
func (o *operators) serve(debug http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	if debug != nil {
		mux.Handle("GET /debug/", debug)
	}
	if o.heard != nil {
		mux.Handle("GET /about/heard", &hearing{args: o.heard})
	}
	o.server.Handler = mux
	if err := o.server.Serve(o.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// overdue ends the process when a stop takes too long. Stop what it returns when all is well.
func overdue(log *slog.Logger) *time.Timer {
	return time.AfterFunc(stopLimit, func() {
		log.Error("the stop took too long and was cut short", "limit", stopLimit)
		os.Exit(1)
	})
}

// A part is a room of the house that runs as a process of its own.
type part interface {
	// Drain gives up what it does for people, bit by bit, and takes nothing new. It returns nil when nothing is
	// left; that holds until Undrain. When ctx ends before, it returns an error, and nothing is given up any more.
	Drain(ctx context.Context) error
	// Undrain ends a drain, finished or not: everything is taken as before.
	Undrain()
}

// Stages of a drain, as plenum_drain_stage shows them.
const (
	drainNone = iota
	draining
	drained
)

// hear returns the signals that obey obeys. It is called before anything else: one that comes while a process starts
// must neither end it nor be lost.
func hear() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT)
	return signals
}

// obey does what signals ask of a part until ctx ends: SIGHUP reloads, SIGUSR1 starts a drain, SIGUSR2
// takes it back. SIGQUIT is a stop at leisure: a drain, and stop when nothing is left. How far a drain is, is
// in the metrics. Files that have changed are a SIGHUP too: Nomad drops the one for a task that is just starting.
func obey(ctx context.Context, signals <-chan os.Signal, log *slog.Logger, reg prometheus.Registerer, p part, files *fileWatch, reload func() error, stop func()) {
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "plenum_drain_stage", Help: "0: in service, 1: draining, 2: drained."})
	reg.MustRegister(gauge)
	stage := drainNone
	enter := func(s int, says string) {
		stage = s
		gauge.Set(float64(s))
		log.Warn(says)
	}
	cancel := func() {}
	leaving := false // stop when drained
	again := func() {
		if err := reload(); err != nil {
			log.Error("not reloaded, all is as before", "err", err)
		}
	}
	look := time.NewTicker(watchEvery)
	defer look.Stop()
	ended := make(chan error, 1) // of the drain
	for {
		select {
		case <-look.C:
			if files.changed() {
				again()
			}
		case <-ctx.Done():
			if cancel(); stage == draining {
				<-ended
			}
			return
		case err := <-ended:
			if stage == draining && err == nil {
				enter(drained, "drained")
				if leaving {
					stop()
				}
			}
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				files.changed()
				again()
			case s == syscall.SIGQUIT && stage == drained:
				stop()
			case s == syscall.SIGUSR1 && stage == drainNone, s == syscall.SIGQUIT && stage != drained:
				if leaving = leaving || s == syscall.SIGQUIT; stage == draining {
					continue
				}
				if files.changed() { // its rooms go to shards that are there now
					again()
				}
				enter(draining, "drain begins")
				var drain context.Context
				drain, cancel = context.WithCancel(ctx)
				go func() { ended <- p.Drain(drain) }()
			case s == syscall.SIGUSR2 && stage != drainNone:
				if cancel(); stage == draining {
					<-ended
				}
				p.Undrain()
				leaving = false
				enter(drainNone, "drain taken back")
			}
		}
	}
}

// watchEvery is how often files are looked at.
const watchEvery = 2 * time.Second

// A fileWatch tells whether files have changed since they were looked at last.
type fileWatch struct {
	names []string
	seen  []string
}

// newWatch comes before the files are read for the first time. Empty names are none.
func newWatch(names ...string) *fileWatch {
	w := &fileWatch{names: slices.DeleteFunc(names, func(n string) bool { return n == "" })}
	w.changed()
	return w
}

func (w *fileWatch) changed() bool {
	var now []string
	for _, n := range w.names {
		if i, err := os.Stat(n); err == nil {
			now = append(now, fmt.Sprint(n, i.Size(), i.ModTime().UnixNano()))
		}
	}
	changed := !slices.Equal(now, w.seen)
	w.seen = now
	return changed
}
