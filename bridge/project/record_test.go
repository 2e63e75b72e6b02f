package project

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/webrtc/v3"

	"plenum/bridge/packet"
)

var record = flag.Bool("record", false, "make testdata anew, of what a Chromium on this machine sends")

// descriptorID is the id of the dependency descriptor in the recordings, descriptorURI its name.
const (
	descriptorID  = 12
	descriptorURI = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
)

// A recorded packet of an encoding, with when it came, since the first.
type recorded struct {
	encoding int
	at       time.Duration
	data     []byte
}

// recordings are what is in testdata: what browsers send for Jitsi's clients.
var recordings = []struct {
	name, mime string
	encodings  string // sendEncodings
}{
	{"vp8", "video/VP8", `[{rid:"0",scaleResolutionDownBy:4,maxBitrate:40000},{rid:"1",scaleResolutionDownBy:2,maxBitrate:70000},{rid:"2",maxBitrate:250000}]`},
	{"h264", "video/H264", `[{rid:"0",scaleResolutionDownBy:4,maxBitrate:40000},{rid:"1",scaleResolutionDownBy:2,maxBitrate:70000},{rid:"2",maxBitrate:250000}]`},
	{"vp9", "video/VP9", `[{scalabilityMode:"L3T3_KEY",maxBitrate:900000}]`},
	{"av1", "video/AV1", `[{scalabilityMode:"L3T3_KEY",maxBitrate:900000}]`},
	{"av1full", "video/AV1", `[{scalabilityMode:"L3T3",maxBitrate:900000}]`},
}

const page = `(async () => {
	const c = document.createElement("canvas"); c.width = 960; c.height = 540; document.body.append(c);
	const g = c.getContext("2d"); let n = 0;
	setInterval(() => { n++;
		g.fillStyle = "#456"; g.fillRect(0, 0, 960, 540);
		g.fillStyle = "#fc8"; g.fillRect(100 + 7 * n %% 700, 150 + 40 * Math.sin(n / 5), 160, 160);
	}, 66);
	window.pc = new RTCPeerConnection();
	const t = pc.addTransceiver(c.captureStream(15).getVideoTracks()[0], {direction: "sendonly", sendEncodings: %s});
	const all = RTCRtpSender.getCapabilities("video").codecs.filter(x => x.mimeType == %q &&
		(x.mimeType != "video/H264" || /packetization-mode=1/.test(x.sdpFmtpLine) && /42e01f/.test(x.sdpFmtpLine)));
	if (!all.length) throw new Error("no such codec");
	t.setCodecPreferences([all[0]]);
	await pc.setLocalDescription();
	while (pc.iceGatheringState != "complete") await new Promise(f => setTimeout(f, 20));
	return JSON.stringify(pc.localDescription);
})()`

// TestRecord is how testdata was made.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("testdata is there; -record makes it anew")
	}
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.Flag("disable-features", "WebRtcHideLocalIpsWithMdns"))...)
	defer cancel()
	for _, r := range recordings {
		all, err := recordOne(alloc, fmt.Sprintf(page, r.encodings, r.mime))
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		var b []byte
		for _, p := range all {
			b = binary.BigEndian.AppendUint16(b, uint16(len(p.data)))
			b = append(b, byte(p.encoding))
			b = binary.BigEndian.AppendUint16(b, uint16(p.at.Milliseconds()))
			b = append(b, p.data...)
		}
		t.Logf("%s: %d packets, %d bytes", r.name, len(all), len(b))
		if err := os.WriteFile("testdata/"+r.name+".rtp", b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// recordOne returns what a page sends in a few seconds, and with many requests for key frames.
func recordOne(alloc context.Context, script string) (out []recorded, err error) {
	ctx, cancel := chromedp.NewContext(alloc)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Navigate("about:blank")); err != nil {
		return nil, err
	}
	offer, err := chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
	if err != nil {
		return nil, err
	}
	m := &webrtc.MediaEngine{}
	if err := m.RegisterDefaultCodecs(); err != nil {
		return nil, err
	}
	for _, uri := range []string{"urn:ietf:params:rtp-hdrext:sdes:mid", "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id", descriptorURI} {
		if err := m.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, webrtc.RTPCodecTypeVideo); err != nil {
			return nil, err
		}
	}
	var feedback interceptor.Registry // without it little is sent
	if err := webrtc.RegisterDefaultInterceptors(m, &feedback); err != nil {
		return nil, err
	}
	api := webrtc.NewAPI(webrtc.WithMediaEngine(m), webrtc.WithInterceptorRegistry(&feedback))
	pc, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	var mu sync.Mutex
	var begin time.Time
	var tracks sync.WaitGroup
	pc.OnTrack(func(track *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
		encoding := 0
		if rid := track.RID(); rid != "" {
			encoding = int(rid[0] - '0')
		}
		var id uint8
		for _, x := range receiver.GetParameters().HeaderExtensions {
			if x.URI == descriptorURI {
				id = uint8(x.ID)
			}
		}
		tracks.Go(func() {
			b := make([]byte, packet.MaxBytes)
			for {
				n, _, err := track.Read(b)
				if err != nil {
					return
				}
				now := time.Now()
				mu.Lock()
				if begin.IsZero() {
					begin = now
				}
				if d := slim(b[:n], id); d != nil {
					out = append(out, recorded{encoding, now.Sub(begin), d})
				}
				mu.Unlock()
			}
		})
		tracks.Go(func() {
			for range 7 {
				if pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(track.SSRC())}}) != nil {
					return
				}
				time.Sleep(400 * time.Millisecond)
			}
		})
	})
	var sd webrtc.SessionDescription
	if err := json.Unmarshal([]byte(offer), &sd); err != nil {
		return nil, err
	}
	if err := pc.SetRemoteDescription(sd); err != nil {
		return nil, err
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return nil, err
	}
	done := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		return nil, err
	}
	<-done
	text, err := json.Marshal(pc.LocalDescription())
	if err != nil {
		return nil, err
	}
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[int](fmt.Sprintf("pc.setRemoteDescription(%s).then(() => 1)", text), chromedp.EvalAwaitPromise)); err != nil {
		return nil, err
	}
	time.Sleep(*recordFor)
	pc.Close()
	tracks.Wait()
	return out, nil
}

var recordFor = flag.Duration("record.for", 3*time.Second, "how long each recording is")

// slim is a packet without extensions but the dependency descriptor; nil without media.
func slim(b []byte, id uint8) []byte {
	r, err := packet.ParseRTP(b)
	if err != nil || len(r.Payload) == 0 {
		return nil
	}
	h := packet.Header{PT: 96, Marker: r.Marker(), Seq: r.Seq(), Timestamp: r.Timestamp(), SSRC: r.SSRC()}
	d := slices.Clone(r.Extension(id))
	out, x := packet.BeginExtensions(h.Append(nil), len(d) > 16)
	if id != 0 && len(d) > 0 {
		out = x.Add(out, descriptorID, len(d))
		copy(out[len(out)-len(d):], d)
	}
	return append(x.End(out, 0), r.Payload...)
}
