//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"plenum/signaling/client/thin"
)

var (
	costRepeats = flag.Int("cost.repeats", 3, "how often BenchmarkCost measures each system, interleaved")
	costWindow  = flag.Duration("cost.window", 6*time.Second, "for how long it measures each time")
	costSystems = flag.String("cost.systems", "limit-sendto,limit-sendmmsg,limit-gso,plenum", "what it measures: limit-MODE, plenum, the path of another plenum to compare with, jvb or janus; ratios are taken to the first")
	costJVB     = flag.String("cost.jvb", "", "`URL COMMAND` of the private HTTP of a Java bridge, and what runs it until it is killed, for the system jvb")
	costWarm    = flag.Duration("cost.warm", 25*time.Second, "for how long a Java bridge carries the load before it is measured")
	costProfile = flag.String("cost.profile", "", "`DIR` for CPU profiles of plenum, taken in the window; the figures are higher then")
	costRooms   = flag.Int("cost.rooms", 20, "how many rooms of a hundred BenchmarkRooms tries at most")
	costAddr    = flag.String("cost.addr", "127.0.0.1", "IPv4 `ADDRESS` of this machine that media goes over")
	costGRO     = flag.Bool("cost.gro", false, "let receivers take segmented sends whole, as if the sender's card cut them up")
)

// The processor of what is measured, and that of the load.
const serverCPU, loadCPU = 0, 1

// costNice is the priority of both, so that other work on the machine shows less in the delays.
const costNice = -15

// A costScenario is who sends and who gets.
type costScenario struct {
	name      string
	listeners int
	publish   []thin.Publish // one for each participant who publishes; publishers get the others too
}

func (s costScenario) participants() int { return s.listeners + len(s.publish) }

func costScenarios() []costScenario {
	camera := thin.Publish{Audio: true, AudioBytes: 200, Video: 1_500_000, Seed: 1}
	voice := func(seed uint64) thin.Publish { return thin.Publish{Audio: true, Seed: seed} }
	all := []costScenario{
		{"A10", 10, []thin.Publish{camera}},
		{"A100", 100, []thin.Publish{camera}},
		{"A300", 300, []thin.Publish{camera}},
		{"B", 100, []thin.Publish{voice(1), voice(2), voice(3)}},
	}
	mesh := costScenario{name: "C"}
	for i := range 10 {
		mesh.publish = append(mesh.publish, thin.Publish{Audio: true, Video: 500_000, Width: 640, Height: 360, Seed: uint64(i + 1)})
	}
	return append(all, mesh)
}

// BenchmarkCost measures what forwarding a packet costs: the limit program and the bridge, each in a process of its
// own, one after the other and again, with the same load. It prints a table; docs/PERFORMANCE.md explains it.
func BenchmarkCost(b *testing.B) {
	for _, s := range costScenarios() {
		b.Run(s.name, func(b *testing.B) {
			for range b.N {
				benchmarkCost(b, s)
			}
		})
	}
}

func benchmarkCost(b *testing.B, s costScenario) {
	defer prefer()()
	systems := strings.Split(*costSystems, ",")
	rows := map[string][]cost{}
	bin := buildServers(b)
	for range *costRepeats {
		for _, name := range systems {
			c, err := measure(bin, name, s)
			if err != nil {
				b.Fatalf("%s %s: %v", s.name, name, err)
			}
			rows[name] = append(rows[name], c)
		}
	}
	base := rows[systems[0]]
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\n%s\tns/pkt min/med/max\tx %s, same repeat\tuser+sys\tkpps\tcores\tlost\tvideo p50/p99 ms\taudio p50/p99 ms\tRSS MB\tswitches/pkt\tload late ms\tload avg\t\n", s.name, systems[0])
	for _, name := range systems {
		mine := rows[name]
		var ns, ratios []float64
		void := ""
		for i, c := range mine {
			ns = append(ns, c.ns())
			ratios = append(ratios, c.ns()/base[i].ns())
			if v := c.void(s, base[i]); v != "" {
				void = v
			}
		}
		order := slices.Clone(mine)
		slices.SortFunc(order, func(a, b cost) int { return int(a.ns() - b.ns()) })
		m := order[len(order)/2]
		loads := ""
		for _, c := range mine {
			loads += " " + c.load
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.0f+%.0f\t%.1f\t%.2f\t%d\t%s\t%s\t%d\t%.2f\t%.1f\t%s\t%s\n", name,
			spread(ns, "%.0f"), spread(ratios, "%.2f"), m.perPacket(m.user), m.perPacket(m.system), m.kpps(), m.cpu.Seconds()/m.window.Seconds(),
			m.count.Lost, delays(m.count.Video), delays(m.count.Audio), m.rss>>20, float64(m.switches)/float64(m.count.Packets),
			float64(m.count.Late)/1e6, strings.TrimSpace(loads), void)
		b.ReportMetric(median(ns), name+"-ns/pkt")
		if name != systems[0] {
			b.ReportMetric(median(ratios), name+"-ratio")
		}
	}
	w.Flush()
}

// BenchmarkRooms adds rooms of a hundred to one bridge, the load on the same processors, until more than one packet in
// a thousand is lost or one in a hundred takes longer than 20 ms: two speak, one is seen in 720p, five in 180p.
func BenchmarkRooms(b *testing.B) {
	for _, s := range []costScenario{{name: "video", listeners: 92}, {name: "audio", listeners: 98}} {
		s.publish = []thin.Publish{{Audio: true, Seed: 1}, {Audio: true, Seed: 2}}
		if s.name == "video" {
			s.publish = append(s.publish, thin.Publish{Video: 1_500_000, Seed: 3})
			for i := range 5 {
				s.publish = append(s.publish, thin.Publish{Video: 150_000, Width: 320, Height: 180, Seed: uint64(4 + i)})
			}
		}
		b.Run(s.name, func(b *testing.B) {
			for range b.N {
				benchmarkRooms(b, s)
			}
		})
	}
}

func benchmarkRooms(b *testing.B, s costScenario) {
	defer prefer()()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	e, err := thin.New(thin.Config{From: netip.MustParseAddr(*costAddr), CPU: -1, Nice: costNice, GRO: *costGRO, Drain: 10 * time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	var engine sync.WaitGroup
	engine.Go(func() { e.Run(running) })
	defer engine.Wait()
	defer stop()
	p, err := launch(ctx, buildServers(b).plenum, -1)
	if p != nil {
		defer p.stop()
	}
	if err != nil {
		b.Fatal(err)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "\nrooms of %d, %s\tkpps\tMbit/s\tns/pkt\tbridge cores\tload cores\tlost %%\tvideo p50/p99 ms\taudio p50/p99 ms\tstress\tRSS MB\tload avg\t\n", s.participants(), s.name)
	good, before := 0, 0.0
	for rooms := 1; rooms <= *costRooms; rooms++ {
		if err := joinThin(ctx, e, p.bridge, fmt.Sprint("room-", rooms), s); err != nil {
			fmt.Fprintf(w, "%d\tjoining: %v\n", rooms*s.participants(), err)
			break
		}
		time.Sleep(2500 * time.Millisecond)
		c, err := p.window(e)
		if err != nil {
			b.Fatal(err)
		}
		text, stress := p.stress()
		lost := 100 * float64(c.count.Lost) / float64(c.count.Packets+c.count.Lost)
		fmt.Fprintf(w, "%d\t%.1f\t%.0f\t%.0f\t%.2f\t%.2f\t%.3f\t%s\t%s\t%s\t%d\t%s\t%s\n", rooms*s.participants(), c.kpps(),
			float64(c.count.Bytes)*8/1e6/c.window.Seconds(), c.ns(), c.cpu.Seconds()/c.window.Seconds(), c.own.Seconds()/c.window.Seconds(),
			lost, delays(c.count.Video), delays(c.count.Audio), text, c.rss>>20, c.load, c.void(s, c))
		if stress < before-0.05 {
			b.Errorf("stress went from %.2f down to %.2f with more to do", before, stress)
		}
		before = stress
		if lost >= 0.1 || max(c.count.Video.P99, c.count.Audio.P99) > 20*time.Millisecond {
			if stress < 0.8 {
				b.Errorf("it is too much at a stress of %.2f", stress)
			}
			break
		}
		good = rooms * s.participants()
	}
	b.ReportMetric(float64(good), "participants")
}

// A cost is one measurement.
type cost struct {
	window       time.Duration
	cpu          time.Duration // of the process and its children
	own          time.Duration // of the load
	user, system time.Duration
	switches     uint64
	rss          uint64 // peak, bytes
	load         string
	count        thin.Count
}

func (c cost) ns() float64   { return c.perPacket(c.cpu) }
func (c cost) kpps() float64 { return float64(c.count.Packets) / c.window.Seconds() / 1000 }
func (c cost) perPacket(d time.Duration) float64 {
	return float64(d) / max(1, float64(c.count.Packets))
}

// void says why a measurement does not count, by the rules of docs/PERFORMANCE.md.
func (c cost) void(s costScenario, limit cost) string {
	var why []string
	if c.count.Bad > 0 {
		why = append(why, fmt.Sprintf("%d of %d opened packets are bad", c.count.Bad, c.count.Opened))
	}
	if c.count.Dropped > 0 {
		why = append(why, fmt.Sprintf("the load dropped %d", c.count.Dropped))
	}
	if c.count.Late > 20*time.Millisecond {
		why = append(why, "the load was late")
	}
	if got, want := float64(c.count.Packets+c.count.Lost), float64(c.count.Sent)*float64(s.participants()-1); got < 0.97*want {
		why = append(why, fmt.Sprintf("only %.0f%% forwarded", 100*got/want))
	}
	if s.name == "A100" && (limit.ns() < 1900 || limit.ns() > 2700) {
		why = append(why, fmt.Sprintf("the limit took %.0f ns", limit.ns()))
	}
	d, l := c.count.Video, limit.count.Video
	if d.Max == 0 {
		d, l = c.count.Audio, limit.count.Audio
	}
	if d.P50 > time.Millisecond || d.P99 > l.P99+2*time.Millisecond {
		why = append(why, "delay")
	}
	if len(why) == 0 {
		return ""
	}
	return "VOID: " + strings.Join(why, ", ")
}

func spread(v []float64, format string) string {
	v = slices.Sorted(slices.Values(v))
	return fmt.Sprintf(format+"/"+format+"/"+format, v[0], median(v), v[len(v)-1])
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return math.NaN()
	}
	return v[len(v)/2]
}

func delays(d thin.Delay) string {
	if d.Max == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f/%.1f", float64(d.P50)/1e6, float64(d.P99)/1e6)
}

// servers are the programs under test.
type servers struct{ plenum, limit string }

func buildServers(tb testing.TB) servers {
	dir := tb.TempDir()
	s := servers{filepath.Join(dir, "plenum"), filepath.Join(dir, "limit")}
	for path, pkg := range map[string]string{s.plenum: ".", s.limit: "./bridge/udp/limit"} {
		c := exec.Command("go", "build", "-trimpath", "-o", path, pkg)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			tb.Fatalf("go build %s: %v\n%s", pkg, err, out)
		}
	}
	return s
}

// measure runs one system under one scenario.
func measure(bin servers, name string, s costScenario) (c cost, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cpu := -1
	if runtime.NumCPU() > 1 {
		cpu = loadCPU
	}
	e, err := thin.New(thin.Config{From: netip.MustParseAddr(*costAddr), CPU: cpu, Nice: costNice, GRO: *costGRO})
	if err != nil {
		return c, err
	}
	running, stop := context.WithCancel(ctx)
	var engine sync.WaitGroup
	engine.Go(func() { e.Run(running) })
	defer engine.Wait()
	defer stop()

	var p *process
	if mode, ok := strings.CutPrefix(name, "limit-"); ok {
		p, err = startLimit(bin.limit, mode, e, s)
	} else if name == "jvb" {
		p, err = startJVB(ctx, e, s)
	} else if name == "janus" {
		p, err = startJanus(ctx, e, s)
	} else {
		path := bin.plenum
		if strings.Contains(name, "/") {
			path = name
		}
		p, err = startPlenum(ctx, path, e, s)
	}
	if p != nil {
		defer p.stop()
	}
	if err != nil {
		return c, err
	}
	settle := 2500 * time.Millisecond // key frames, maps, held audio
	if name == "jvb" {
		settle = *costWarm
	}
	time.Sleep(settle)
	var profile error
	var profiling sync.WaitGroup
	if *costProfile != "" && p.debug != "" {
		profiling.Go(func() {
			profile = fetch(p.debug+"/debug/pprof/profile?seconds="+strconv.Itoa(int(costWindow.Seconds())), filepath.Join(*costProfile, s.name+".pprof"))
		})
	}
	c, err = p.window(e)
	profiling.Wait()
	if err == nil {
		err = profile
	}
	return c, err
}

// window measures for a while.
func (p *process) window(e *thin.Engine) (c cost, err error) {
	e.Reset()
	before, err := p.usage()
	if err != nil {
		return c, err
	}
	var own [2]unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &own[0])
	began := time.Now()
	time.Sleep(*costWindow)
	after, err := p.usage()
	c = cost{
		window: time.Since(began), cpu: after.cpu - before.cpu, user: after.user - before.user, system: after.system - before.system,
		switches: after.switches - before.switches, rss: after.rss, count: e.Count(),
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		c.load, _, _ = strings.Cut(string(text), " ")
	}
	_ = unix.Getrusage(unix.RUSAGE_SELF, &own[1])
	for i, sign := range []int64{-1, 1} {
		c.own += time.Duration(sign * (own[i].Utime.Nano() + own[i].Stime.Nano()))
	}
	return c, err
}

func fetch(url, path string) error {
	r, err := http.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, r.Body)
	return err
}

// startLimit runs the limit program with a participant for each peer.
func startLimit(path, mode string, e *thin.Engine, s costScenario) (*process, error) {
	type key struct{ Key, Salt []byte }
	type peer struct {
		Addr    netip.AddrPort
		In, Out key
		From    []int
	}
	var cfg struct {
		Listen netip.AddrPort
		Mode   string
		Peers  []peer
	}
	cfg.Listen, cfg.Mode = netip.AddrPortFrom(netip.MustParseAddr(*costAddr), 0), mode
	var all []*thin.Participant
	for i := range s.participants() {
		p, err := e.NewParticipant()
		if err != nil {
			return nil, err
		}
		all = append(all, p)
		one := peer{Addr: p.Local(), In: key(newKey()), Out: key(newKey())}
		for j := range s.publish {
			if i != j {
				one.From = append(one.From, j)
			}
		}
		cfg.Peers = append(cfg.Peers, one)
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	p, err := start(serverCPU, path)
	if err != nil {
		return nil, err
	}
	if _, err := p.in.Write(append(text, '\n')); err != nil {
		return p, err
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		return p, err
	}
	remote, err := netip.ParseAddrPort(strings.TrimSpace(line))
	if err != nil {
		return p, err
	}
	for i, one := range all {
		if err := one.Keys(remote, thin.Key(cfg.Peers[i].In), thin.Key(cfg.Peers[i].Out)); err != nil {
			return p, err
		}
	}
	for i, what := range s.publish {
		if err := all[i].Publish(what); err != nil {
			return p, err
		}
	}
	return p, nil
}

// startPlenum runs plenum dev and has everybody join a room on its bridge.
func startPlenum(ctx context.Context, path string, e *thin.Engine, s costScenario) (*process, error) {
	p, err := launch(ctx, path, serverCPU)
	if err != nil {
		return p, err
	}
	return p, joinThin(ctx, e, p.bridge, "cost", s)
}

// startJVB runs a Java bridge and has everybody join a room on it, as startPlenum does.
func startJVB(ctx context.Context, e *thin.Engine, s costScenario) (*process, error) {
	url, command, ok := strings.Cut(*costJVB, " ")
	if !ok {
		return nil, errors.New("-cost.jvb 'URL COMMAND' says where a Java bridge is")
	}
	p, err := start(serverCPU, "/bin/sh", "-c", "exec "+command)
	if err != nil {
		return nil, err
	}
	for {
		if r, err := http.Get(url + "/colibri/stats"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return p, joinThin(ctx, e, url, "cost", s)
}

// launch runs plenum dev on a processor, or on all if that is negative, until it listens.
func launch(ctx context.Context, path string, cpu int) (*process, error) {
	dir, err := os.MkdirTemp("", "plenum-cost")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	const free = "127.0.0.1:0"
	file := filepath.Join(dir, "ready.json")
	p, err := start(cpu, path, "dev", "--http", free, "--xmpp", free, "--metrics", free, "--bridge-http", free, "--media", *costAddr+":0",
		"--ready-file", file, "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	var ready readyFile
	for {
		if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &ready) == nil {
			break
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	p.debug, p.bridge, p.shard = ready.Metrics, ready.BridgeHTTP, ready.HTTP
	return p, nil
}

// joinThin has the participants of a scenario join, the publishers first, and then publish.
func joinThin(ctx context.Context, e *thin.Engine, bridge, meeting string, s costScenario) error {
	room := e.NewRoom(bridge, meeting)
	all := make([]*thin.Participant, s.participants())
	errs := make([]error, len(all))
	slots := make(chan struct{}, 8)
	var joining sync.WaitGroup
	for i := range all {
		var what thin.Publish
		if i < len(s.publish) {
			what = s.publish[i]
		}
		slots <- struct{}{}
		joining.Go(func() {
			defer func() { <-slots }()
			all[i], errs[i] = room.Join(ctx, fmt.Sprintf("%08x", i+1), what, thin.View{})
		})
	}
	joining.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	for i, what := range s.publish {
		if err := all[i].Publish(what); err != nil {
			return err
		}
	}
	return nil
}

// newKey is a random session key.
func newKey() thin.Key {
	b := make([]byte, 28)
	f, err := os.Open("/dev/urandom")
	if err == nil {
		_, err = io.ReadFull(f, b)
		f.Close()
	}
	if err != nil {
		panic(err)
	}
	return thin.Key{Key: b[:16], Salt: b[16:]}
}

// A process is one program under test, alone on its processor.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	debug  string // URL with /debug/pprof
	bridge string // URL of the private HTTP
	shard  string // URL
}

func start(cpu int, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...)}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, p.out = in, bufio.NewReader(out)
	done := make(chan error)
	go func() { // the child inherits processor and priority from this thread, which ends with the goroutine
		runtime.LockOSThread()
		if cpu >= 0 && runtime.NumCPU() > 1 {
			var set unix.CPUSet
			set.Set(cpu)
			_ = unix.SchedSetaffinity(0, &set)
		}
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, costNice)
		done <- p.cmd.Start()
	}()
	return p, <-done
}

func (p *process) stop() {
	p.in.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// prefer has the scheduler's group of this session, in which priorities are compared with those of others on the
// machine, go first, until undo is called.
func prefer() (undo func()) {
	const group = "/proc/self/autogroup"
	_ = os.WriteFile(group, []byte(strconv.Itoa(costNice)), 0)
	return func() { _ = os.WriteFile(group, []byte("0"), 0) }
}

// urgent gives all threads of this process the priority of what is measured, and those that they make.
func urgent() (undo func()) {
	back := prefer()
	renice := func(nice int) {
		tasks, _ := filepath.Glob("/proc/self/task/*")
		for _, t := range tasks {
			if id, err := strconv.Atoi(filepath.Base(t)); err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice) // without it the figures are noisier
			}
		}
	}
	renice(costNice)
	return func() {
		renice(0)
		back()
	}
}

// A usage is what a process and its children have used so far.
type usage struct {
	cpu, user, system time.Duration
	switches, rss     uint64
}

// usage adds up the process tree. The sum of user and system time comes from the scheduler's own count, of which
// /proc/PID/stat shows whole ticks of 10 ms.
func (p *process) usage() (u usage, err error) {
	pids, err := tree(p.cmd.Process.Pid)
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		fields, err := statFields(dir)
		if err != nil {
			return u, err
		}
		u.user += ticks(fields[11])
		u.system += ticks(fields[12])
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			return u, err
		}
		u.rss += 1024 * statusField(status, "VmHWM:")
		tasks, err := filepath.Glob(dir + "/task/*")
		if err != nil {
			return u, err
		}
		for _, t := range tasks {
			if text, err := os.ReadFile(t + "/schedstat"); err == nil {
				ran, _, _ := strings.Cut(string(text), " ")
				n, _ := strconv.ParseUint(ran, 10, 64)
				u.cpu += time.Duration(n)
			}
			if text, err := os.ReadFile(t + "/status"); err == nil {
				u.switches += statusField(text, "voluntary_ctxt_switches:") + statusField(text, "nonvoluntary_ctxt_switches:")
			}
		}
	}
	if u.cpu == 0 {
		u.cpu = u.user + u.system
	}
	return u, err
}

// tree lists a process and its descendants.
func tree(root int) ([]int, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	parents := map[int]int{}
	for _, dir := range all {
		if fields, err := statFields(dir); err == nil {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	var out []int
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if p == root {
				out = append(out, pid)
				break
			}
		}
	}
	return out, err
}

// statFields are those of /proc/PID/stat behind the name: state, parent, …; user and system time are 11 and 12.
func statFields(dir string) ([]string, error) {
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, err
	}
	s := string(text)
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:]), nil
}

// ticks are USER_HZ, which is 100 on every Linux.
func ticks(s string) time.Duration {
	n, _ := strconv.ParseUint(s, 10, 64)
	return time.Duration(n) * 10 * time.Millisecond
}

func statusField(text []byte, name string) uint64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}
