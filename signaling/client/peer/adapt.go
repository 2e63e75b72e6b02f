package peer

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/gcc"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// What a camera sends, as browsers do under Jitsi Meet.
var cameraRates = [...]struct{ least, most int }{{30_000, 200_000}, {150_000, 500_000}, {600_000, 1_500_000}} // bit/s

const (
	cameraInterval = time.Second / 30
	cameraKey      = 5      // how much larger key frames are than others
	audioShare     = 50_000 // bit/s of the estimate that sound takes before pictures get any
	startRate      = 1_000_000
	leastRate      = 100_000
	paceFactor     = 2.5 // times the estimate
	fineTick       = 5 * time.Millisecond
)

// adaptation is congestion control of what a peer sends: pion's send-side estimate, a pacer as in browsers, and
// simulcast layers that are cut to what there is, from the top. It is guarded by Peer.mu.
type adaptation struct {
	bwe     *gcc.SendSideBWE
	writers map[uint32]interceptor.RTPWriter
	queue   []pacedPacket
	budget  float64 // bytes
	at      time.Time
}

type pacedPacket struct {
	header  rtp.Header
	payload []byte
}

func newAdaptation() (*adaptation, error) {
	bwe, err := gcc.NewSendSideBWE(gcc.SendSideBWEInitialBitrate(startRate), gcc.SendSideBWEMinBitrate(leastRate),
		gcc.SendSideBWEMaxBitrate(4_000_000), gcc.SendSideBWEPacer(gcc.NewNoOpPacer()), gcc.WithLoggerFactory(quiet))
	return &adaptation{bwe: bwe, writers: map[uint32]interceptor.RTPWriter{}}, err
}

// send passes a packet to the estimate, and out.
func (a *adaptation) send(h *rtp.Header, payload []byte, ext uint8, seal func(h *rtp.Header, payload []byte)) {
	w := a.writers[h.SSRC]
	if w == nil {
		w = a.bwe.AddStream(&interceptor.StreamInfo{SSRC: h.SSRC, RTPHeaderExtensions: []interceptor.RTPHeaderExtension{
			{URI: "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01", ID: int(ext)},
		}}, interceptor.RTPWriterFunc(func(h *rtp.Header, payload []byte, _ interceptor.Attributes) (int, error) {
			seal(h, payload)
			return len(payload), nil
		}))
		a.writers[h.SSRC] = w
	}
	_, _ = w.Write(h, payload, nil)
}

// due takes those packets from the queue that may leave now.
func (a *adaptation) due(now time.Time) (out []pacedPacket) {
	rate := paceFactor * float64(a.bwe.GetTargetBitrate()) / 8
	if !a.at.IsZero() {
		a.budget = min(a.budget+rate*now.Sub(a.at).Seconds(), rate*(2*fineTick).Seconds())
	}
	a.at = now
	n := 0
	for ; n < len(a.queue) && a.budget > 0; n++ {
		a.budget -= float64(len(a.queue[n].payload) + 40)
	}
	out, a.queue = a.queue[:n:n], a.queue[n:]
	return out
}

// feedback takes what the bridge says of arrivals.
func (a *adaptation) feedback(packets []rtcp.Packet) { _ = a.bwe.WriteRTCP(packets, nil) }

// cameraRate is the bit rate of each layer when the estimate is total: the lowest first, a higher one only when it gets
// its least. A layer that is on needs a tenth less than one that is to begin. With no estimate, total is negative.
func cameraRate(total int, on []bool) (rates []int) {
	rates = make([]int, len(on))
	if total < 0 {
		total = math.MaxInt
	}
	total = max(cameraRates[0].least, total-audioShare)
	for i := range rates {
		least := cameraRates[i].least
		if i > 0 && !on[i] {
			least += least / 10
		}
		if total < least {
			break
		}
		rates[i] = min(total, cameraRates[i].most)
		total -= rates[i]
	}
	return rates
}

// cameraSize draws the size of a frame: those of higher temporal layers are smaller, and all vary by a tenth or so.
func cameraSize(rate, temporal int, key bool) int {
	n := float64(rate) / 8 * cameraInterval.Seconds() * math.Exp(0.12*rand.NormFloat64())
	switch {
	case key:
		n *= cameraKey
	default:
		n *= [3]float64{1.5, 1.1, 0.7}[temporal]
	}
	return int(n)
}
