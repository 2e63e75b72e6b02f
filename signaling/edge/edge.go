// Package edge feeds a region's HAProxy: which shards and bridges there are, where a room's sockets go, who is banned,
// which certificate is shown. HAProxy carries the connections and never reloads; this process may stop and start
// beside it. While it is gone HAProxy goes on with what it was told last and spreads new rooms by chance, which
// the shards put right by handing over.
package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Config of an Edge. Proxy, Catalog and Domain are required.
type Config struct {
	Proxy   Proxy
	Catalog Catalog
	Domain  string // XMPP domain of the cluster, as its shards have it

	// Authority issues the certificates of Proxy.Names; nil: those that lie in Proxy.Dir are shown.
	Authority *Authority
	// State is the file of the last view, which serves until the catalogue answers. Empty: none.
	State string
	// Capacity is how many participants a shard is made for. Default 10,000.
	Capacity int
	// Ramp is how long a new shard takes to its full share of new rooms. Default one minute; negative: none.
	Ramp time.Duration
	// Hold is how long a shard that was ill stays out, so that one that flaps moves rooms once. Default 30 s.
	Hold time.Duration

	Metrics prometheus.Registerer // may be nil
	Log     *slog.Logger          // may be nil
}

func (c *Config) validate() error {
	if c.Catalog == nil || c.Domain == "" {
		return errors.New("edge: no catalogue, or no domain")
	}
	if c.Capacity <= 0 {
		c.Capacity = 10_000
	}
	if c.Ramp == 0 {
		c.Ramp = time.Minute
	}
	if c.Hold == 0 {
		c.Hold = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// An Edge feeds one HAProxy.
type Edge struct {
	cfg     Config
	log     *slog.Logger
	haproxy runtime
	offload net.Listener
	place   *placer
	metrics *metrics
	client  *http.Client
	keeper  *custodian // nil without an authority
	display *display   // of files; nil with one, and without HTTPS

	changed chan struct{} // a new view is there

	mu   sync.Mutex
	view View

	// owned by the goroutine of feed
	seen map[string]*sighting // shards by name
	mute map[string]bool      // complaints that were made
	text []byte               // of HAProxy's configuration
}

// A sighting is what an edge knows of a shard beside the catalogue.
type sighting struct {
	since    time.Time // when it came into service here, or came back; zero: not yet
	started  time.Time // when its process did, as it says itself; zero: it has not
	lastIll  time.Time // when it was last found so after that; zero: never
	down     bool      // by HAProxy's checks
	load     int
	draining bool
}

// New listens where HAProxy will ask and writes HAProxy's configuration, so that it may be started.
func New(cfg Config) (*Edge, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	var last View
	var err error
	if cfg.State != "" {
		if last, err = load(cfg.State); err != nil {
			cfg.Log.Warn("the last view cannot be used", "err", err)
		}
	}
	files, err := cfg.Proxy.Files(last, time.Now())
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", cfg.Proxy.Offload)
	if err != nil {
		return nil, err
	}
	e := &Edge{
		cfg: cfg, log: cfg.Log, haproxy: runtime{cfg.Proxy.Path(fileAdmin)}, offload: l,
		place: newPlacer(cfg.Domain, cfg.Proxy.Region, time.Now), metrics: newMetrics(cfg.Metrics, cfg.Catalog), view: last,
		client:  &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
		changed: make(chan struct{}, 1), seen: map[string]*sighting{}, mute: map[string]bool{},
	}
	for name, text := range files {
		if err := renameio.WriteFile(cfg.Proxy.Path(name), text, 0o600); err != nil {
			l.Close()
			return nil, fmt.Errorf("HAProxy's files: %w", err)
		}
	}
	for _, name := range cfg.Proxy.Names {
		if err := placeholder(cfg.Proxy.certificate(name), name); err != nil {
			l.Close()
			return nil, fmt.Errorf("a certificate to begin with: %w", err)
		}
	}
	if cfg.Authority != nil {
		if e.keeper, err = newCustodian(cfg.Proxy, *cfg.Authority, e.metrics.until, cfg.Log); err != nil {
			l.Close()
			return nil, err
		}
	}
	if cfg.Authority == nil && cfg.Proxy.HTTPS != "" {
		e.display = newDisplay(cfg.Proxy, e.metrics.until, cfg.Log)
	}
	return e, nil
}

// Run feeds HAProxy until ctx ends. HAProxy goes on afterwards.
func (e *Edge) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveOffload(ctx, e.offload, e.answer) })
	g.Go(func() error { return e.cfg.Catalog.Watch(ctx, e.tell) })
	g.Go(func() error { e.feed(ctx); return nil })
	switch {
	case e.keeper != nil:
		g.Go(func() error { return e.keeper.run(ctx) })
	case e.display != nil:
		g.Go(func() error {
			if e.display.ready(ctx) {
				e.display.follow(ctx)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// answer is what HAProxy is told about a request or an answer.
func (e *Edge) answer(m message) []string {
	switch m.name {
	case "place":
		e.metrics.asked.Inc()
		if shard := e.place.place(m.args["path"], m.args["query"]); shard != "" {
			return []string{"shard", shard}
		}
	case "learn":
		e.place.learn(m.args["path"], m.args["query"], m.args["shard"])
	}
	return nil
}

// tell takes a new view from the catalogue. One without any shard or bridge is not believed as to those: a catalogue
// that was emptied, or a token that sees nothing, would end all that goes on, and HAProxy finds out by itself who is gone.
func (e *Edge) tell(v View) {
	e.mu.Lock()
	if len(v.Shards) == 0 {
		v.Shards = e.view.Shards
	}
	if len(v.Bridges) == 0 {
		v.Bridges = e.view.Bridges
	}
	e.view = v
	e.mu.Unlock()
	if e.cfg.State != "" {
		if err := v.save(e.cfg.State); err != nil {
			e.log.Warn("the view cannot be kept", "err", err)
		}
	}
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// feed tells HAProxy what it should have, at every change and every second, for HAProxy may have been restarted.
func (e *Edge) feed(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	there, began := false, time.Now()
	for {
		e.mu.Lock()
		v := e.view
		e.mu.Unlock()
		e.look(ctx, v.Shards)
		now := time.Now()
		e.place.set(e.weigh(v.Shards, now))
		err := errors.Join(e.keep(v, now), e.apply(ctx, v, now))
		var dial *net.OpError
		switch absent := errors.As(err, &dial) && dial.Op == "dial"; {
		case absent && !there && now.Sub(began) < startLimit: // it is started after this process
		case err != nil && ctx.Err() == nil:
			if absent {
				err = fmt.Errorf("it does not run; start haproxy -f %s%s", e.cfg.Proxy.Path(fileConfig), e.obstacle())
			}
			e.complain("HAProxy cannot be told", err)
		default:
			there = true
			clear(e.mute)
		}
		select {
		case <-ctx.Done():
			return
		case <-e.changed:
		case <-tick.C:
		}
	}
}

// startLimit is how long HAProxy may take to be there at first.
const startLimit = 5 * time.Second

// obstacle says what keeps a HAProxy that does not run from its ports, as far as that can be seen from here.
func (e *Edge) obstacle() string {
	for _, addr := range []string{e.cfg.Proxy.HTTP, e.cfg.Proxy.HTTPS} {
		if addr == "" {
			continue
		}
		l, err := net.Listen("tcp", addr)
		switch {
		case err == nil:
			l.Close()
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Sprintf(": another program has %s, which is to be stopped first", addr)
		case errors.Is(err, syscall.EACCES):
			return fmt.Sprintf(" as root or with cap_net_bind_service: %s is for the privileged", addr)
		default:
			return fmt.Sprintf(": %v", err)
		}
	}
	return ""
}

// complain logs what goes wrong every second once.
func (e *Edge) complain(what string, err error) {
	e.metrics.errors.Inc()
	if key := what + err.Error(); !e.mute[key] {
		e.mute[key] = true
		e.log.Warn(what, "err", err)
	}
}

// look asks each shard what it carries. One that does not answer keeps what it said last.
func (e *Edge) look(ctx context.Context, shards []Shard) {
	var all sync.WaitGroup
	for _, s := range shards {
		known := e.seen[s.Name]
		if known == nil {
			known = new(sighting)
			e.seen[s.Name] = known
		}
		if s.Load == "" {
			continue
		}
		all.Go(func() {
			if now, err := e.ask(ctx, s.Load); err == nil {
				known.load, known.draining, known.started = now.load, now.draining, now.started
			}
		})
	}
	all.Wait()
	for name := range e.seen {
		if !slices.ContainsFunc(shards, func(s Shard) bool { return s.Name == name }) {
			delete(e.seen, name)
			e.metrics.weight.DeleteLabelValues(name)
		}
	}
}

// ask reads from a shard's metrics how many participants it has, whether it gives its rooms away, and since when it runs.
func (e *Edge) ask(ctx context.Context, addr string) (says sighting, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return says, err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return says, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(io.LimitReader(res.Body, 4<<20))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "jitsi_jicofo_participants_current":
			n, _ := strconv.ParseFloat(value, 64)
			says.load = int(n)
		case "plenum_drain_stage":
			says.draining = value != "0"
		case "process_start_time_seconds":
			n, _ := strconv.ParseFloat(value, 64)
			says.started = time.UnixMilli(int64(1000 * n))
		}
	}
	return says, lines.Err()
}

// weigh says which share of new rooms each shard gets, and which are to be left out. One that comes up serves as soon as it
// is well, and grows with its age, whoever looks; one that was ill in between is held back for a while, and then begins anew.
func (e *Edge) weigh(shards []Shard, now time.Time) []weighted {
	all := make([]weighted, 0, len(shards))
	for _, s := range shards {
		known := e.seen[s.Name]
		switch back := known.lastIll.Add(e.cfg.Hold); {
		case s.Ill || known.down:
			s.Ill = true
			if !known.since.IsZero() {
				known.lastIll = now
			}
		case known.since.IsZero():
			known.since = now
		case now.Before(back):
			s.Ill = true
		case known.since.Before(back):
			known.since = back
		}
		from := known.since
		if known.lastIll.IsZero() && !known.started.IsZero() {
			from = known.started
		}
		w := weighted{Shard: s, grown: grown(now.Sub(from), e.cfg.Ramp)}
		if len(shards) == 1 {
			w.grown = 1 // nobody else could take its rooms
		}
		if !known.draining {
			w.weight = w.grown * weight(known.load, e.cfg.Capacity)
		}
		e.metrics.weight.WithLabelValues(s.Name).Set(w.weight)
		all = append(all, w)
	}
	return all
}

// apply brings HAProxy to what a view says.
func (e *Edge) apply(ctx context.Context, v View, now time.Time) error {
	shards, bridges := map[string]string{}, map[string]string{}
	for _, s := range v.Shards {
		shards[s.Name] = s.Addr
	}
	for _, b := range v.Bridges {
		bridges[b.ID] = b.Addr
	}
	has, err := e.servers(ctx, "shards", shards, shardOptions)
	if err != nil {
		return err
	}
	for name, known := range e.seen {
		known.down = has[name].down
	}
	_, err = e.servers(ctx, "bridges", bridges, bridgeOptions)
	return errors.Join(err, e.end(ctx, v.Shards, has), e.ban(ctx, v.Bans, now), e.bound(ctx))
}

// end closes the sockets of shards that both the catalogue and HAProxy have lost. With a host that has no power they would
// stay open in silence for the half a minute that clients take to give them up.
func (e *Edge) end(ctx context.Context, shards []Shard, has map[string]server) (err error) {
	for _, s := range shards {
		if x := has[s.Name]; s.Ill && x.down && x.sessions != "0" {
			err = errors.Join(err, e.haproxy.quiet(ctx, "shutdown sessions server shards/"+s.Name))
		}
	}
	return err
}

// keep writes what HAProxy is to start with, if that has changed.
func (e *Edge) keep(v View, now time.Time) error {
	files, err := e.cfg.Proxy.Files(v, now)
	if err != nil || bytes.Equal(files[fileConfig], e.text) {
		return err
	}
	if err := renameio.WriteFile(e.cfg.Proxy.Path(fileConfig), files[fileConfig], 0o600); err != nil {
		return err
	}
	e.text = files[fileConfig]
	return nil
}

// bound has HAProxy refuse connections shortly before it would let them wait: its own limit comes from that of open files.
func (e *Edge) bound(ctx context.Context) error {
	answer, err := e.haproxy.do(ctx, "show info")
	if err != nil {
		return err
	}
	var most int
	for line := range strings.Lines(answer) {
		if n, ok := strings.CutPrefix(line, "Maxconn: "); ok {
			most, _ = strconv.Atoi(strings.TrimSpace(n))
		}
	}
	if most == 0 {
		return fmt.Errorf("%w to say how many connections it takes", errRuntime)
	}
	return e.haproxy.quiet(ctx, fmt.Sprintf("set map %s web %d", e.cfg.Proxy.Path(fileFull), most-most/20-1))
}

// servers makes a backend have the servers that are wanted, by name and address, and returns what it had.
func (e *Edge) servers(ctx context.Context, backend string, wanted map[string]string, options string) (map[string]server, error) {
	has, err := e.haproxy.servers(ctx, backend)
	if err != nil {
		return nil, err
	}
	var all []error
	for name, addr := range wanted {
		s, ok := has[name]
		switch {
		case !ok:
			e.metrics.changes.Inc()
			err = e.haproxy.add(ctx, backend, name, addr, options)
		case s.addr != addr:
			e.metrics.changes.Inc()
			err = e.haproxy.move(ctx, backend, name, addr)
		case !s.ready:
			err = e.haproxy.admit(ctx, backend, name, options)
		default:
			err = nil
		}
		all = append(all, err)
	}
	for name, s := range has {
		if _, ok := wanted[name]; !ok {
			all = append(all, e.haproxy.remove(ctx, backend, name, s))
		}
	}
	e.metrics.servers.WithLabelValues(backend).Set(float64(len(wanted)))
	return has, errors.Join(all...)
}

// ban makes HAProxy's list of banned addresses what it should be now.
func (e *Edge) ban(ctx context.Context, list []Ban, now time.Time) error {
	file := e.cfg.Proxy.Path(fileBans)
	answer, err := e.haproxy.do(ctx, "show acl "+file)
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, line := range strings.Split(answer, "\n") {
		if f := strings.Fields(line); len(f) == 2 { // id and address
			has[f[1]] = true
		}
	}
	var all []error
	wanted := map[string]bool{}
	for _, b := range list {
		p := pattern(b.Prefix)
		if !b.Prefix.IsValid() || !now.Before(b.Until) || wanted[p] {
			continue
		}
		wanted[p] = true
		if !has[p] {
			all = append(all, e.haproxy.quiet(ctx, fmt.Sprintf("add acl %s %s", file, p)))
		}
	}
	for p := range has {
		if !wanted[p] {
			all = append(all, e.haproxy.quiet(ctx, fmt.Sprintf("del acl %s %s", file, p)))
		}
	}
	e.metrics.bans.Set(float64(len(wanted)))
	if text := bans(list, now); len(all) > 0 {
		all = append(all, renameio.WriteFile(file, text, 0o600)) // for a HAProxy that starts without us
	}
	return errors.Join(all...)
}

// pattern is a prefix as HAProxy writes it.
func pattern(p netip.Prefix) string {
	p = p.Masked()
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func bans(list []Ban, now time.Time) []byte {
	var b strings.Builder
	for _, x := range list {
		if now.Before(x.Until) && x.Prefix.IsValid() {
			b.WriteString(pattern(x.Prefix) + "\n")
		}
	}
	return []byte(b.String())
}

// Close ends an Edge that was not run.
func (e *Edge) Close() error {
	return errors.Join(e.offload.Close(), os.Remove(e.cfg.Proxy.Path(fileConfig)))
}
