package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"plenum/bridge"
	"plenum/signaling"
)

// maxBridges is far more than a test needs.
const maxBridges = 16

// devOptions are the flags of plenum dev; the help texts say what they mean.
type devOptions struct {
	processOptions
	shardOptions
	bridgeOptions
	bridges int
	turn    string
}

// devSettings are the flags that the configuration file and the environment may set too.
var devSettings = slices.Concat(shardSettings, bridgeSettings, processSettings, []setting{
	{"turn", "signaling", "turn"}, {"bridges", "bridge", "bridges"}, {"metrics", "dev", "metrics"},
})

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
	o.processOptions.flags(f, "127.0.0.1:9711")
	o.shardOptions.flags(f)
	o.bridgeOptions.flags(f)
	f.Lookup("bridge-ws").Usage += " (default: on --http)"
	f.StringVar(&o.turn, "turn", "", "run a TURN server on `ADDR:PORT` as well, for clients that only a relay can reach")
	f.IntVar(&o.bridges, "bridges", 1, "how many bridges to run; bridge `N` uses the media and bridge-http ports plus N")
	return c
}

// check rejects what no room could use, before anything is started.
func (o *devOptions) check() error {
	if o.bridges < 1 || o.bridges > maxBridges {
		return fmt.Errorf("--bridges %d: want at least 1 and at most %d", o.bridges, maxBridges)
	}
	return cmp.Or(o.shardOptions.check(), o.bridgeOptions.check(),
		checkAddresses(address{"metrics", o.metrics, "127.0.0.1:9711", false}, address{"turn", o.turn, "192.0.2.7:3478", true}))
}

// A dev is everything that runs in one process.
type dev struct {
	o       devOptions
	log     *slog.Logger
	ops     *operators
	shard   *signaling.Server
	bridges []*bridge.Bridge
	turn    *turnServer // nil: none
}

func runDev(ctx context.Context, o devOptions, out io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	log, err := newLogger(os.Stderr, o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	d := &dev{o: o, log: log}
	if err := d.bind(); err != nil {
		d.close()
		return err
	}
	if o.readyFile != "" {
		if err := d.ready().write(o.readyFile); err != nil {
			d.close()
			return err
		}
		defer os.Remove(o.readyFile)
	}
	fmt.Fprintf(out, "open in two browser tabs: %s/%s\n", d.url(), roomName())
	if !slices.ContainsFunc(d.bridges[0].MediaAddrs(), func(a netip.AddrPort) bool { return !a.Addr().IsLoopback() }) {
		fmt.Fprintln(out, "media is on the loopback only, which Firefox does not use: leave --media out, or give an address of this machine's network")
	}
	return d.run(ctx)
}

// bind makes the rooms, which listen from then on; the shard first, as the bridges report to it.
func (d *dev) bind() (err error) {
	if d.ops, err = newOperators(d.o.metrics); err != nil {
		return err
	}
	config, err := d.o.room()
	if err != nil {
		return err
	}
	password := newPassword()
	config.Accounts = append([]string{bridgeAccount + ":" + password}, config.Accounts...)
	config.BridgeChannel = http.HandlerFunc(d.serveChannel)
	config.Metrics, config.Log = d.ops.registry, d.log
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
		Uplink:    uint64(d.o.uplink * 1e6),
		HTTP:      nth(d.o.bridgeHTTP, i),
		Channel:   nth(d.o.bridgeWS, i),
		RelayID:   id,
		Version:   version(),
		Shards: []bridge.Shard{{
			Addr: d.shard.XMPPAddr().String(), Domain: "auth." + d.o.domain, User: bridgeAccount, Password: password,
			Brewery: "jvbbrewery@internal.auth." + d.o.domain, InsecureTLS: true, // the shard of this very process
		}},
		Loopback: true, // for browsers on this machine, which may have no network
		Metrics:  prometheus.WrapRegistererWith(prometheus.Labels{"bridge": id}, d.ops.registry),
		Log:      d.log,
	}
	if d.o.media == "" && i > 0 {
		c.Media = nth(":10000", i)
	}
	if d.o.bridgeWS == "" {
		c.ChannelURL = webSocketURL(d.url())
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

func (d *dev) url() string { return shardURL(d.shard, d.o.tls) }

// ready says where everything listens.
func (d *dev) ready() readyFile {
	r := readyFile{
		HTTP: d.url(), WS: webSocketURL(d.url()) + "/xmpp-websocket", XMPP: d.shard.XMPPAddr().String(),
		Metrics: d.ops.url(), Domain: d.o.domain,
	}
	for _, b := range d.bridges {
		r.Bridges = append(r.Bridges, readyOf(b))
	}
	r.Media, r.BridgeHTTP = r.Bridges[0].Media, r.Bridges[0].BridgeHTTP
	return r
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
	g.Go(func() error { return d.ops.serve(d.shard.DebugHandler()) })
	g.Go(func() error { frugal(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		defer overdue(d.log).Stop()
		<-shardGone
		stop()
		if d.turn != nil {
			d.turn.Close()
		}
		return d.ops.server.Close()
	})
	return g.Wait()
}

// close releases what is bound when the start fails half-way.
func (d *dev) close() {
	for _, b := range d.bridges {
		b.Close()
	}
	if d.shard != nil {
		d.shard.Close()
	}
	if d.ops != nil {
		d.ops.listener.Close()
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
