package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// testKey is some key, another one for each n.
func testKey(n byte) Key {
	return Key{bytes.Repeat([]byte{n}, 16), bytes.Repeat([]byte{n + 100}, 12)}
}

// What one peer sends reaches the others whole, in each mode, and nothing else does.
func TestForward(t *testing.T) {
	for _, mode := range []string{"sendto", "sendmmsg", "gso"} {
		t.Run(mode, func(t *testing.T) {
			const receivers, packets = 3, 90 // which fit a small receive buffer
			cfg := Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Mode: mode}
			var conns []*net.UDPConn
			for i := range receivers + 1 {
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				conns = append(conns, c)
				p := Peer{Addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), Out: testKey(byte(i))}
				if i == 0 {
					p.In = testKey(50)
				} else {
					p.From = []int{0}
				}
				cfg.Peers = append(cfg.Peers, p)
			}
			in, control := io.Pipe()
			output, out := io.Pipe()
			done := make(chan error, 1)
			go func() { done <- run(in, out); out.Close() }()
			if err := json.NewEncoder(control).Encode(cfg); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(output)
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(strings.TrimSpace(line)))

			sealer, err := newCrypt(testKey(50))
			if err != nil {
				t.Fatal(err)
			}
			const first = 65500 // so that the numbers wrap
			for i := range packets {
				h := []byte{0x90, 100, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0xbe, 0xde, 0, 1, 0x50, 1, 0, 0}
				seq := first + i
				binary.BigEndian.PutUint16(h[2:], uint16(seq))
				payload := bytes.Repeat([]byte{byte(i)}, 500+i%3)
				b := sealer.aead.Seal(h, sealer.number(9, uint32(seq>>16), uint16(seq)), payload, h)
				if i == 50 {
					b[40]++ // is not to be forwarded
				}
				if _, err := conns[0].WriteTo(b, to); err != nil {
					t.Fatal(err)
				}
			}
			for i, c := range conns[1:] {
				opener, err := newCrypt(testKey(byte(i + 1)))
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				for j := range packets {
					if j == 50 {
						continue
					}
					var b [2000]byte
					n, err := c.Read(b[:])
					if err != nil {
						t.Fatal(err)
					}
					seq := first + j
					if got := binary.BigEndian.Uint16(b[2:]); got != uint16(seq) {
						t.Fatalf("receiver %d: number %d, want %d", i, got, uint16(seq))
					}
					payload, err := opener.aead.Open(nil, opener.number(9+newSSRC, uint32(seq>>16), uint16(seq)), b[20:n], b[:20])
					if err != nil || len(payload) != 500+j%3 || payload[7] != byte(j) {
						t.Fatalf("receiver %d, packet %d: %d bytes, %v", i, j, len(payload), err)
					}
				}
			}
			control.Close()
			var r Report
			if err := json.NewDecoder(lines).Decode(&r); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if r.Received != packets-1 || r.Bad != 1 || r.Forwarded != receivers*(packets-1) || r.Failed != 0 || r.Seal == 0 || r.Send == 0 || r.Open == 0 {
				t.Errorf("%+v", r)
			}
			t.Logf("%+v", r)
		})
	}
}

func TestBadConfig(t *testing.T) {
	for _, text := range []string{
		``, `{"Mode":"carrier pigeon"}`, `{"Mode":"gso","Peers":[{"From":[0]}]}`,
		`{"Mode":"gso","Peers":[{"In":{"Key":"AAAA"}}]}`, `{"Mode":"gso","Listen":"192.0.2.77:1"}`,
	} {
		if err := run(strings.NewReader(text), io.Discard); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
