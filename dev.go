package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"plenum/bridge"
	"plenum/bridge/udp"
	"plenum/signaling"
	"plenum/signaling/web"
	"plenum/wire/jid"
)

const (
	// stopLimit bounds how long a stop may take from signal to exit.
	stopLimit = 5 * time.Second
	// maxBridges is far more than a test needs.
	maxBridges = 16
)

// devOptions are the flags of plenum dev; the help texts say what they mean.
type devOptions struct {
	config, readyFile           string
	http, xmpp, metrics, domain string
	web                         string
	configJS                    object
	tls                         bool
	accounts                    []string
	media, bridgeHTTP, bridgeWS string
	advertise                   []string
	bridges                     int
	logLevel, logFormat         string

	resumeKey string
	turn      string

	hibernation time.Duration // for tests: how long a lost session is kept; 0 is the default
}

// devSettings are the flags that the configuration file and the environment may set too.
var devSettings = []setting{
	{"http", "signaling", "http"}, {"xmpp", "signaling", "xmpp"}, {"domain", "signaling", "domain"}, {"tls", "signaling", "tls"},
	{"account", "signaling", "account"}, {"web", "signaling", "web"}, {"config-js", "signaling", "config_js"},
	{"resume-key", "signaling", "resume_key"}, {"turn", "signaling", "turn"},
	{"media", "bridge", "media"}, {"advertise", "bridge", "advertise"}, {"bridges", "bridge", "bridges"},
	{"bridge-http", "bridge", "http"}, {"bridge-ws", "bridge", "ws"},
	{"metrics", "dev", "metrics"}, {"log-level", "log", "level"}, {"log-format", "log", "format"},
}

func devCommand() *cobra.Command {
	var o devOptions
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run shard, bridge and web client in one process",
		Long: `Run shard, bridge and web client in one process, with nothing to configure: open the link it
prints in two browser tabs and they have a call. Interrupt it to stop.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := configure(c.Flags(), o.config, devSettings); err != nil {
				return err
			}
			if o.tls && !c.Flags().Changed("http") {
				o.http = "0.0.0.0:8000"
			}
			return runDev(c.Context(), o, c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.config, "config", "", "configuration `FILE` (HCL); flags and environment win over it")
	f.StringVar(&o.http, "http", "127.0.0.1:8000", "`ADDR` of the web client and of XMPP over WebSocket; port 0 picks one")
	f.BoolVar(&o.tls, "tls", false, "serve HTTPS with a self-signed certificate, so that other machines can join")
	f.StringVar(&o.xmpp, "xmpp", "127.0.0.1:5222", "`ADDR` of XMPP over TCP, for bridges, Jicofo and Jibri")
	f.StringVar(&o.domain, "domain", "localhost", "XMPP `DOMAIN`; rooms are at conference.DOMAIN")
	f.StringArrayVar(&o.accounts, "account", nil, "`NAME:PASSWORD` that may log in over TCP; repeatable")
	f.StringVar(&o.web, "web", "", "folder `DIR` with an unpacked build of Jitsi Meet's web application, to serve in place of the built-in client")
	f.Var(&o.configJS, "config-js", "`OBJECT` laid over config.js, deeper values over deeper ones")
	f.StringVar(&o.resumeKey, "resume-key", "", "`SECRET` with which clients go on by themselves after a restart with the same one")
	f.StringVar(&o.turn, "turn", "", "run a TURN server on `ADDR:PORT` as well, for clients that only a relay can reach")
	f.StringVar(&o.media, "media", "", "`ADDR:PORT` for media (default every address of this machine, port 10000)")
	f.StringArrayVar(&o.advertise, "advertise", nil, "`PUBLIC[:PORT]` that clients behind NAT reach the media port by; repeatable")
	f.IntVar(&o.bridges, "bridges", 1, "how many bridges to run; bridge `N` uses the media and bridge-http ports plus N")
	f.StringVar(&o.bridgeHTTP, "bridge-http", "127.0.0.1:8080", "`ADDR` of the bridge's private HTTP")
	f.StringVar(&o.bridgeWS, "bridge-ws", "", "`ADDR` where bridges take the colibri WebSocket themselves (default: on --http)")
	f.StringVar(&o.metrics, "metrics", "127.0.0.1:9711", "`ADDR` of /metrics and /debug of everything")
	f.StringVar(&o.readyFile, "ready-file", "", "write the addresses in use as JSON to `PATH` when everything listens")
	f.StringVar(&o.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	return c
}

// check rejects what no room could use, before anything is started.
func (o *devOptions) check() error {
	for _, a := range []struct{ flag, value, example string }{
		{"http", o.http, "127.0.0.1:8000"}, {"xmpp", o.xmpp, "127.0.0.1:5222"}, {"metrics", o.metrics, "127.0.0.1:9711"},
		{"media", o.media, "192.0.2.7:10000"}, {"bridge-http", o.bridgeHTTP, "127.0.0.1:8080"}, {"bridge-ws", o.bridgeWS, "127.0.0.1:9090"},
		{"turn", o.turn, "192.0.2.7:3478"},
	} {
		if a.value == "" && (a.flag == "media" || a.flag == "bridge-ws" || a.flag == "turn") {
			continue
		}
		if err := checkAddress(a.value); err != nil {
			return fmt.Errorf("--%s %s: want ADDR:PORT, for example %s: %w", a.flag, a.value, a.example, err)
		}
	}
	for _, a := range o.advertise {
		if _, err := netip.ParseAddr(a); err == nil {
			continue
		}
		if _, err := netip.ParseAddrPort(a); err != nil {
			return fmt.Errorf("--advertise %s: want PUBLIC or PUBLIC:PORT, for example 203.0.113.9:10000", a)
		}
	}
	for _, a := range o.accounts {
		if name, password, ok := strings.Cut(a, ":"); !ok || name == "" || password == "" {
			return fmt.Errorf("--account %s: want NAME:PASSWORD", name)
		}
	}
	if o.bridges < 1 || o.bridges > maxBridges {
		return fmt.Errorf("--bridges %d: want at least 1 and at most %d", o.bridges, maxBridges)
	}
	if o.web != "" {
		if _, err := os.Stat(filepath.Join(o.web, "index.html")); err != nil {
			return fmt.Errorf("--web %s: there is no index.html; want the folder of an unpacked build of Jitsi Meet's web application", o.web)
		}
	}
	if _, err := jid.New("", o.domain, ""); err != nil {
		return fmt.Errorf("--domain %s: %w", o.domain, err)
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

// A dev is everything that runs in one process.
type dev struct {
	o        devOptions
	log      *slog.Logger
	registry *prometheus.Registry
	shard    *signaling.Server
	bridges  []*bridge.Bridge
	metrics  net.Listener
	turn     *turnServer // nil: none
}

func runDev(ctx context.Context, o devOptions, out io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	log, err := newLogger(os.Stderr, o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	d := &dev{o: o, log: log, registry: prometheus.NewRegistry()}
	if err := d.bind(); err != nil {
		d.close()
		return err
	}
	if o.readyFile != "" {
		if err := d.writeReady(o.readyFile); err != nil {
			d.close()
			return err
		}
		defer os.Remove(o.readyFile)
	}
	fmt.Fprintf(out, "open in two browser tabs: %s/%s\n", d.url(), roomName())
	return d.run(ctx)
}

// bind makes the rooms, which listen from then on; the shard first, as the bridges report to it.
func (d *dev) bind() error {
	password := newPassword()
	account := bridgeAccount + ":" + password
	config := signaling.Config{
		Domain:        d.o.domain,
		HTTP:          d.o.http,
		XMPP:          d.o.xmpp,
		Accounts:      append([]string{account}, d.o.accounts...),
		Web:           web.Handler(),
		Site:          d.o.web,
		ConfigJS:      d.o.configJS,
		BridgeChannel: http.HandlerFunc(d.serveChannel),
		Metrics:       d.registry,
		Log:           d.log,
	}
	config.Sessions.Hibernation = d.o.hibernation
	config.Sessions.ResumeKey = []byte(d.o.resumeKey)
	if d.o.tls {
		certificate, err := selfSigned(time.Now())
		if err != nil {
			return err
		}
		config.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	}
	var err error
	if d.o.turn != "" {
		if d.turn, err = newTURNServer(d.o.turn, d.o.domain); err != nil {
			return inUse(err, "turn", d.o.turn)
		}
		config.Services = d.turn.services()
	}
	if d.shard, err = signaling.New(config); err != nil {
		return inUse(err, "http", d.o.http, "xmpp", d.o.xmpp)
	}
	for i := range d.o.bridges {
		b, err := bridge.New(d.bridgeConfig(i, password))
		if err != nil {
			return inUse(err, "bridge-http", nth(d.o.bridgeHTTP, i), "bridge-ws", nth(d.o.bridgeWS, i), "media", nth(d.o.media, i))
		}
		d.bridges = append(d.bridges, b)
	}
	if d.metrics, err = net.Listen("tcp", d.o.metrics); err != nil {
		return inUse(err, "metrics", d.o.metrics)
	}
	d.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return nil
}

// newPassword makes a password that lasts as long as this process.
func newPassword() string {
	secret := make([]byte, 16)
	rand.Read(secret) // never fails
	return hex.EncodeToString(secret)
}

// bridgeAccount is what our own bridges log in as.
const bridgeAccount = "plenum-bridge"

func (d *dev) bridgeConfig(i int, password string) bridge.Config {
	id := "dev-" + strconv.Itoa(i+1)
	c := bridge.Config{
		Media:     nth(d.o.media, i),
		Advertise: d.o.advertise,
		HTTP:      nth(d.o.bridgeHTTP, i),
		Channel:   nth(d.o.bridgeWS, i),
		RelayID:   id,
		Version:   version(),
		Shards: []bridge.Shard{{
			Addr: d.shard.XMPPAddr().String(), Domain: "auth." + d.o.domain, User: bridgeAccount, Password: password,
			Brewery: "jvbbrewery@internal.auth." + d.o.domain, InsecureTLS: true, // the shard of this very process
		}},
		Loopback: true, // for browsers on this machine, which may have no network
		Metrics:  prometheus.WrapRegistererWith(prometheus.Labels{"bridge": id}, d.registry),
		Log:      d.log,
	}
	if d.o.media == "" && i > 0 {
		c.Media = nth(":10000", i)
	}
	if d.o.bridgeWS == "" {
		c.ChannelURL = d.webSocketURL()
	}
	return c
}

// nth is the address of bridge i when bridge 0 has addr: the port plus i, or any port when it is 0.
func nth(addr string, i int) string {
	host, port, err := net.SplitHostPort(addr)
	n, nerr := strconv.Atoi(port)
	if err != nil || nerr != nil || n == 0 {
		return addr
	}
	return net.JoinHostPort(host, strconv.Itoa(n+i))
}

// serveChannel hands a colibri WebSocket, /colibri-ws/BRIDGE-ID/…, to its bridge.
func (d *dev) serveChannel(w http.ResponseWriter, r *http.Request) {
	id, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/colibri-ws/"), "/")
	for _, b := range d.bridges {
		if b.ID() == id {
			b.ChannelHandler().ServeHTTP(w, r)
			return
		}
	}
	http.NotFound(w, r)
}

// url is where a browser finds the shard. A wildcard address is told as one that others can reach.
func (d *dev) url() string {
	scheme := "http"
	if d.o.tls {
		scheme = "https"
	}
	address := d.shard.HTTPAddr().String()
	host, port, err := net.SplitHostPort(address)
	if err == nil && net.ParseIP(host).IsUnspecified() {
		address = net.JoinHostPort(outwardAddress(), port)
	}
	return scheme + "://" + address
}

// webSocketURL is the same for WebSockets, without a path.
func (d *dev) webSocketURL() string { return strings.Replace(d.url(), "http", "ws", 1) }

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

// writeReady writes the file whole, so that who sees it can read all of it.
func (d *dev) writeReady(path string) error {
	r := readyFile{
		HTTP:    d.url(),
		WS:      d.webSocketURL() + "/xmpp-websocket",
		XMPP:    d.shard.XMPPAddr().String(),
		Metrics: "http://" + d.metrics.Addr().String(),
		Domain:  d.o.domain,
		PID:     os.Getpid(),
	}
	for _, b := range d.bridges {
		r.Bridges = append(r.Bridges, readyBridge{b.MediaAddrs()[0].String(), "http://" + b.HTTPAddr().String(), b.ID()})
	}
	r.Media, r.BridgeHTTP = r.Bridges[0].Media, r.Bridges[0].BridgeHTTP
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("--ready-file %s: %w", path, err)
	}
	return nil
}

// run serves until ctx is cancelled or a part fails. The shard goes first, so that clients hear from it
// that it ends before their media stops.
func (d *dev) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	shardGone := make(chan struct{})
	g.Go(func() error {
		defer close(shardGone)
		return d.shard.Run(ctx)
	})
	bridges, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for _, b := range d.bridges {
		g.Go(func() error { return b.Run(bridges) })
	}
	private := &http.Server{Handler: d.private(), ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := private.Serve(d.metrics); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		overdue := time.AfterFunc(stopLimit, func() {
			d.log.Error("the stop took too long and was cut short", "limit", stopLimit)
			os.Exit(1)
		})
		defer overdue.Stop()
		<-shardGone
		stop()
		if d.turn != nil {
			d.turn.Close()
		}
		return private.Close()
	})
	return g.Wait()
}

// private serves what is for operators only: metrics, debug state, profiles.
func (d *dev) private() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("GET /debug/", d.shard.DebugHandler())
	return mux
}

// close releases what is bound when the start fails half-way.
func (d *dev) close() {
	for _, b := range d.bridges {
		b.Close()
	}
	if d.shard != nil {
		d.shard.Close()
	}
	if d.metrics != nil {
		d.metrics.Close()
	}
	if d.turn != nil {
		d.turn.Close()
	}
}

// roomName makes up a room that nobody else is in.
func roomName() string {
	pick := func(words []string) string {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
		if err != nil {
			panic("plenum: no randomness: " + err.Error())
		}
		return words[n.Int64()]
	}
	return pick(adjectives) + "-" + pick(nouns) + "-" + pick(verbs)
}

var (
	adjectives = strings.Fields("bright calm clever curious early fair fond free gentle glad keen kind lively merry mild nimble patient quick quiet steady sunny swift warm wise")
	nouns      = strings.Fields("badgers beavers bridges cranes falcons finches foxes gardens geese harbours hedges herons larks lanterns meadows otters owls ponds rivers robins sparrows swans towers willows")
	verbs      = strings.Fields("agree build carry chat dance draw gather greet hum laugh learn listen meet ponder read share sing speak stroll talk teach wander whistle wonder")
)
