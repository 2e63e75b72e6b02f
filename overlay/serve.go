package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serve answers GET /status on the socket, and /status and /metrics on the metrics address, which is retried
// until the control plane has it. The function it returns stops both and waits for them.
func (p *process) serve(cfg Config) (stop func(), err error) {
	path := p.o.Socket()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	local, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		local.Close()
		return nil, err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics{func() *Status { return p.status(p.ctx) }})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if s := p.status(r.Context()); s != nil {
			_ = json.NewEncoder(w).Encode(s)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second,
		MaxHeaderBytes: 8 << 10}
	ctx, cancel := context.WithCancel(p.ctx)
	p.group.Go(func() { _ = s.Serve(local) })
	p.group.Go(func() { p.serveMetrics(ctx, s, cfg.Metrics) })
	return func() { cancel(); _ = s.Close() }, nil
}

// status asks the engine; nil when it has stopped.
func (p *process) status(ctx context.Context) *Status {
	answer := make(chan Status, 1)
	p.post(func() { answer <- p.engine.status(time.Now()) })
	select {
	case s := <-answer:
		return &s
	case <-ctx.Done():
	case <-p.ctx.Done():
	}
	return nil
}

func (p *process) serveMetrics(ctx context.Context, s *http.Server, address string) {
	for said := false; ; {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err == nil {
			_ = s.Serve(l)
			l.Close()
			return
		}
		if !said && ctx.Err() == nil {
			p.log.Warn("metrics", "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// Read asks the overlay process of this host, below root, for its status.
func Read(ctx context.Context, root string) (Status, error) {
	o := Options{Root: root}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", o.Socket())
	}, DisableKeepAlives: true}
	return get(ctx, &http.Client{Transport: t}, "http://overlay/status")
}

// Matrix returns the status of this host and of every host that control reaches; the paths in them are the
// whole matrix. Hosts that do not answer are left out: the others' paths to them say why.
func Matrix(ctx context.Context, root string) ([]Status, error) {
	own, err := Read(ctx, root)
	if err != nil {
		return nil, err
	}
	all := []Status{own}
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	type row struct {
		s   Status
		err error
	}
	rows := make(chan row)
	n := 0
	for _, p := range own.Paths {
		if p.Plane == Control && p.Up {
			n++
			go func() {
				s, err := get(ctx, client, fmt.Sprintf("http://%s/status", net.JoinHostPort(p.Address.String(), fmt.Sprint(Port))))
				rows <- row{s, err}
			}()
		}
	}
	for range n {
		if r := <-rows; r.err == nil {
			all = append(all, r.s)
		}
	}
	return all, nil
}

func get(ctx context.Context, c *http.Client, url string) (Status, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Status{}, err
	}
	response, err := c.Do(request)
	if err != nil {
		return Status{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("%s: %s", url, response.Status)
	}
	var s Status
	err = json.NewDecoder(io.LimitReader(response.Body, 4<<20)).Decode(&s)
	return s, err
}
