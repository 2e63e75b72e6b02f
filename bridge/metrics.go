package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"plenum/bridge/conference"
)

const (
	// participantStress is what one more participant is said to cost; focuses add it for joins that the
	// last measurement has not seen.
	participantStress = 0.01

	// maxSize is the last bucket of conferences by size, as there.
	maxSize = 20

	// A core that is so far behind what was posted to it makes the bridge unhealthy.
	coreTimeout = 5 * time.Second
)

var (
	errNoSocket = errors.New("no media socket is bound")
	errStuck    = errors.New("a core does not answer")
)

// metrics counts what the bridge does outside the engine, and publishes it together with the engine's
// counters: as a snapshot each second, for presence, /colibri/stats and /metrics alike.
type metrics struct {
	b        *Bridge
	registry *prometheus.Registry
	extra    prometheus.Registerer // may be nil
	delay    prometheus.Histogram
	started  time.Time

	conferencesCreated, conferencesCompleted, conferenceSeconds                             atomic.Int64
	endpoints, visitors, iceSucceeded, iceFailed, iceRestarts, iceRestartsEarly, dtlsFailed atomic.Int64
	disconnected, reconnected                                                               atomic.Int64
	dataReceived, dataSent, socketReceived, socketSent                                      atomic.Int64
	socketClosed, socketBroken                                                              atomic.Int64
	inboundDropped, outboundDropped, malformedMessages                                      atomic.Int64
	requests, requestErrors, requestsSlow, panics, xmppDisconnect                           atomic.Int64

	snapshot atomic.Pointer[snapshot]

	mu    sync.Mutex
	ended conference.Stats // of conferences that are over
	asked time.Time        // when the cores were last asked for a sign of life
	beats []*atomic.Int64  // per core: the last that it has answered, in unix nanoseconds
	load  load
}

// A snapshot is everything that is published, at one moment.
type snapshot struct {
	Time time.Time
	conference.Stats

	Conferences, Largest, Inactive, P2P                          int
	LocalEndpoints, ActiveEndpoints, InactiveEndpoints, Visitors int
	ReceiveOnly                                                  int
	BitrateIn, BitrateOut, PacketRateIn, PacketRateOut           float64 // per second
	LossIn                                                       float64 // of the last second, 0 to 1
	Paths                                                        paths
	Stress                                                       stress
	Steal                                                        float64
	ShardsConfigured, ShardsConnected, Joined                    int
	Sizes                                                        map[float64]uint64 // cumulative: conferences of up to so many
	Media                                                        mediaStats
}

func newMetrics(b *Bridge) *metrics {
	m := &metrics{b: b, registry: prometheus.NewRegistry(), started: b.cfg.Now()}
	m.delay = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:                        "plenum_bridge_forwarding_delay_seconds",
		Help:                        "Longest time that a packet of a batch may have taken from its arrival at the socket to the last send of the batch.",
		NativeHistogramBucketFactor: 1.2, NativeHistogramMaxBucketNumber: 100,
	})
	m.snapshot.Store(&snapshot{})
	m.registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	if err := r.Register(m); err != nil {
		return fmt.Errorf("bridge metrics: %w", err)
	}
	m.extra = r
	return nil
}

func (m *metrics) unregister() {
	if m.extra != nil {
		m.extra.Unregister(m)
		m.extra = nil
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// request counts one colibri2 request: whether it was refused, and if by our own fault.
func (m *metrics) request(refused, broken bool, took time.Duration) {
	m.requests.Add(1)
	if refused {
		m.requestErrors.Add(1)
	}
	if broken {
		m.panics.Add(1)
	}
	if took > 100*time.Millisecond {
		m.requestsSlow.Add(1)
		m.b.log.Warn("slow colibri request", "took", took)
	}
}

// conferenceEnded keeps the counters of a conference that is over.
func (m *metrics) conferenceEnded(s *conference.Stats) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addCounters(&m.ended, s)
}

func addCounters(sum, s *conference.Stats) {
	sum.PacketsIn += s.PacketsIn
	sum.BytesIn += s.BytesIn
	sum.PacketsOut += s.PacketsOut
	sum.BytesOut += s.BytesOut
	sum.Unsignalled += s.Unsignalled
	sum.Malformed += s.Malformed
	sum.Duplicates += s.Duplicates
	sum.Silence += s.Silence
	sum.LostIn += s.LostIn
	sum.ExpectedIn += s.ExpectedIn
	sum.Retransmitted += s.Retransmitted
	sum.RetransmitMissed += s.RetransmitMissed
	sum.NACKsIn += s.NACKsIn
	sum.NACKsOut += s.NACKsOut
	sum.PLIsIn += s.PLIsIn
	sum.PLIsOut += s.PLIsOut
	sum.SpeakerChanges += s.SpeakerChanges
	sum.BogusFeedback += s.BogusFeedback
	sum.Paced += s.Paced
	sum.Probing += s.Probing
}

// last returns the last snapshot; it is not to be changed.
func (m *metrics) last() *snapshot { return m.snapshot.Load() }

// publish takes a snapshot of what the cores reported and asks them to report again.
func (m *metrics) publish(now time.Time) {
	s := &snapshot{Time: now, ShardsConfigured: len(m.b.shards()), Media: m.b.media.stats(), Sizes: map[float64]uint64{}}
	for size := range maxSize + 1 {
		s.Sizes[float64(size)] = 0
	}
	m.mu.Lock()
	addCounters(&s.Stats, &m.ended)
	s.Stress, s.Steal = m.load.measure(now, s.Media, m.b.cfg.Uplink)
	m.mu.Unlock()
	for _, l := range m.b.control.conferences() {
		s.Conferences++
		l.mu.RLock()
		local := len(l.endpoints)
		for _, e := range l.endpoints {
			if e.visitor {
				s.Visitors++
			}
		}
		l.mu.RUnlock()
		s.LocalEndpoints += local
		s.Largest = max(s.Largest, local)
		for size := local; size <= maxSize; size++ {
			s.Sizes[float64(size)]++
		}
		if c := l.stats.Load(); c != nil {
			addCounters(&s.Stats, c)
			if p := l.paths.Load(); p != nil {
				s.Paths.add(*p)
			}
			s.AudioSources += c.AudioSources
			s.VideoSources += c.VideoSources
			s.AudioSpeakers += c.AudioSpeakers
			s.VideoSenders += c.VideoSenders
			s.ReceiveOnly += max(0, local-max(c.AudioSpeakers, c.VideoSenders))
			if c.AudioSpeakers+c.VideoSenders > 0 {
				s.ActiveEndpoints += local
			} else {
				s.Inactive++
				s.InactiveEndpoints += local
				if local == 2 {
					s.P2P++
				}
			}
		}
		l.core.do(func(time.Time) {
			c := l.conf.Stats()
			l.stats.Store(&c)
			l.lookAtPaths(now)
		})
	}
	for _, x := range m.b.shards() {
		if connected, joined := x.status(); connected {
			s.ShardsConnected++
			if joined {
				s.Joined++
			}
		}
	}
	before := m.last()
	if dt := now.Sub(before.Time).Seconds(); !before.Time.IsZero() && dt > 0 {
		rate := func(now, before uint64) float64 { return float64(now-min(before, now)) / dt }
		s.BitrateIn, s.BitrateOut = 8*rate(s.BytesIn, before.BytesIn), 8*rate(s.BytesOut, before.BytesOut)
		s.PacketRateIn, s.PacketRateOut = rate(s.PacketsIn, before.PacketsIn), rate(s.PacketsOut, before.PacketsOut)
		if expected := rate(s.ExpectedIn, before.ExpectedIn); expected > 0 {
			s.LossIn = min(1, rate(s.LostIn, before.LostIn)/expected)
		}
	}
	m.snapshot.Store(s)
	m.beat(now)
}

// beat asks each core for a sign of life.
func (m *metrics) beat(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = now
	cores := m.b.media.cores
	for len(m.beats) < len(cores) {
		m.beats = append(m.beats, new(atomic.Int64))
		m.beats[len(m.beats)-1].Store(now.UnixNano())
	}
	for i, c := range cores {
		beat := m.beats[i]
		c.do(func(time.Time) { beat.Store(now.UnixNano()) })
	}
}

// health says whether the bridge can do its work; nil is healthy. It only looks at what the last ticks found.
func (m *metrics) health() error {
	if len(m.b.MediaAddrs()) == 0 {
		return errNoSocket
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, beat := range m.beats {
		if m.asked.Sub(time.Unix(0, beat.Load())) > coreTimeout {
			return errStuck
		}
	}
	return nil
}

// A metric is one number under the names that Jitsi's tools know.
type metric struct {
	stat    string // in presence and /colibri/stats; empty: not there
	name    string // in /metrics; empty: not there. Counters get _total
	help    string
	counter bool
	value   func(m *metrics, s *snapshot) float64
}

// decimal statistics are written with a decimal point, as there.
var decimal = map[string]bool{
	"incoming_loss": true, "outgoing_loss": true, "overall_loss": true, "rtt_aggregate": true, "stress_level": true, "average_participant_stress": true,
}

func gauge[T int | int64 | uint64 | float64](stat, name, help string, f func(m *metrics, s *snapshot) T) metric {
	return metric{stat, name, help, false, func(m *metrics, s *snapshot) float64 { return float64(f(m, s)) }}
}

func counter[T int64 | uint64](stat, name, help string, f func(m *metrics, s *snapshot) T) metric {
	return metric{stat, name, help, true, func(m *metrics, s *snapshot) float64 { return float64(f(m, s)) }}
}

// unmeasured is what this bridge does not have or measure yet; tools that read it find zero.
var unmeasured = []string{
	"endpoints_with_spurious_remb", "endpoints_with_suspended_sources", "num_eps_oversending",
	"num_eps_no_msg_transport_after_delay", "total_ice_succeeded_relayed",
	"total_keyframes_received", "total_layering_changes_received", "total_video_stream_milliseconds_received",
	"preemptive_kfr_sent", "preemptive_kfr_suppressed",
	"octo_conferences", "octo_endpoints", "octo_receive_bitrate", "octo_receive_packet_rate", "octo_send_bitrate", "octo_send_packet_rate",
	"total_bytes_received_octo", "total_bytes_sent_octo", "total_packets_received_octo", "total_packets_sent_octo",
	"total_relays", "relays_ice_failed", "dtls_failed_relays", "num_relays_no_msg_transport_after_delay",
}

// published is the list of all numbers.
var published = []metric{
	gauge("stress_level", "jitsi_jvb_stress", "Current stress (0 to 1).", func(_ *metrics, s *snapshot) float64 { return s.Stress.most() }),
	gauge("", "plenum_bridge_stress_machine", "Stress by the processors of the machine.", func(_ *metrics, s *snapshot) float64 { return s.Stress.Machine }),
	gauge("", "plenum_bridge_stress_core", "Stress by packets: by how busy the busiest core is with them.", func(_ *metrics, s *snapshot) float64 { return s.Stress.Core }),
	gauge("", "plenum_bridge_stress_uplink", "Stress by the configured uplink.", func(_ *metrics, s *snapshot) float64 { return s.Stress.Uplink }),
	gauge("average_participant_stress", "", "", func(*metrics, *snapshot) float64 { return participantStress }),
	gauge("", "jitsi_jvb_cpu_steal", "CPU steal fraction (from 0 to 1).", func(_ *metrics, s *snapshot) float64 { return s.Steal }),
	gauge("threads", "jitsi_jvb_thread_count", "Number of goroutines.", func(*metrics, *snapshot) int { return runtime.NumGoroutine() }),
	gauge("", "jitsi_jvb_startup_time", "The startup time of the service.", func(m *metrics, _ *snapshot) int64 { return m.started.UnixMilli() }),
	gauge("", "jitsi_jvb_healthy", "Whether the bridge is healthy.", func(m *metrics, s *snapshot) int { return truth(m.health() == nil) }),
	gauge("", "jitsi_jvb_drain_mode", "Whether the bridge is in drain mode.", func(m *metrics, _ *snapshot) int { d, _, _ := m.b.state.get(); return truth(d) }),
	gauge("", "jitsi_jvb_graceful_shutdown", "Whether the bridge refuses new conferences.", func(m *metrics, _ *snapshot) int { _, g, _ := m.b.state.get(); return truth(g) }),
	gauge("", "jitsi_jvb_shutting_down", "Whether the bridge is shutting down.", func(m *metrics, _ *snapshot) int { _, _, s := m.b.state.get(); return truth(s) }),

	gauge("conferences", "jitsi_jvb_conferences", "Current number of conferences.", func(_ *metrics, s *snapshot) int { return s.Conferences }),
	gauge("inactive_conferences", "jitsi_jvb_conferences_inactive", "Conferences in which nobody sends.", func(_ *metrics, s *snapshot) int { return s.Inactive }),
	gauge("p2p_conferences", "jitsi_jvb_conferences_p2p", "Inactive conferences of two.", func(_ *metrics, s *snapshot) int { return s.P2P }),
	gauge("largest_conference", "jitsi_jvb_largest_conference", "Endpoints in the largest conference.", func(_ *metrics, s *snapshot) int { return s.Largest }),
	gauge("endpoints", "jitsi_jvb_current_endpoints", "Number of current endpoints.", func(_ *metrics, s *snapshot) int { return s.LocalEndpoints }),
	gauge("participants", "", "", func(_ *metrics, s *snapshot) int { return s.LocalEndpoints }),
	gauge("local_endpoints", "jitsi_jvb_local_endpoints", "Number of local endpoints.", func(_ *metrics, s *snapshot) int { return s.LocalEndpoints }),
	gauge("local_active_endpoints", "jitsi_jvb_active_endpoints", "Local endpoints in conferences in which somebody sends.", func(_ *metrics, s *snapshot) int { return s.ActiveEndpoints }),
	gauge("inactive_endpoints", "jitsi_jvb_endpoints_inactive", "Endpoints in inactive conferences.", func(_ *metrics, s *snapshot) int { return s.InactiveEndpoints }),
	gauge("receive_only_endpoints", "jitsi_jvb_endpoints_recvonly", "Endpoints that receive only.", func(_ *metrics, s *snapshot) int { return s.ReceiveOnly }),
	gauge("visitors", "jitsi_jvb_current_visitors", "Number of visitor endpoints.", func(_ *metrics, s *snapshot) int { return s.Visitors }),
	gauge("endpoints_sending_audio", "jitsi_jvb_endpoints_sending_audio", "Local endpoints sending audio.", func(_ *metrics, s *snapshot) int { return s.AudioSpeakers }),
	gauge("endpoints_sending_video", "jitsi_jvb_endpoints_sending_video", "Local endpoints sending video.", func(_ *metrics, s *snapshot) int { return s.VideoSenders }),

	gauge("bit_rate_download", "", "", func(_ *metrics, s *snapshot) int { return int(s.BitrateIn / 1000) }),
	gauge("bit_rate_upload", "", "", func(_ *metrics, s *snapshot) int { return int(s.BitrateOut / 1000) }),
	gauge("", "jitsi_jvb_incoming_bitrate", "RTP received, in bits per second.", func(_ *metrics, s *snapshot) float64 { return s.BitrateIn }),
	gauge("", "jitsi_jvb_outgoing_bitrate", "RTP sent, in bits per second.", func(_ *metrics, s *snapshot) float64 { return s.BitrateOut }),
	gauge("packet_rate_download", "jitsi_jvb_incoming_packet_rate", "RTP packets received per second.", func(_ *metrics, s *snapshot) int { return int(s.PacketRateIn) }),
	gauge("packet_rate_upload", "jitsi_jvb_outgoing_packet_rate", "RTP packets sent per second.", func(_ *metrics, s *snapshot) int { return int(s.PacketRateOut) }),
	gauge("incoming_loss", "jitsi_jvb_incoming_loss_fraction", "Loss of what clients send, 0 to 1.", func(_ *metrics, s *snapshot) float64 { return s.LossIn }),
	gauge("outgoing_loss", "jitsi_jvb_outgoing_loss", "Fraction of packets lost on the way to endpoints, the mean of all.", func(_ *metrics, s *snapshot) float64 { return s.Paths.loss() }),
	gauge("overall_loss", "jitsi_jvb_loss", "Fraction of packets lost, in both directions.", func(_ *metrics, s *snapshot) float64 { return s.lossOverall() }),
	gauge("rtt_aggregate", "jitsi_jvb_rtt", "Round trip time in milliseconds, the mean of all endpoints.", func(_ *metrics, s *snapshot) float64 { return s.Paths.rtt() }),
	gauge("endpoints_with_high_outgoing_loss", "jitsi_jvb_endpoints_with_high_outgoing_loss", "Endpoints that lose more than a tenth of what they are sent.", func(_ *metrics, s *snapshot) int { return s.Paths.Lossy }),
	counter("tcc_unmatched_feedback", "jitsi_jvb_tcc_unmatched_feedback", "Transport-wide feedback about what was never sent, or malformed.", func(_ *metrics, s *snapshot) uint64 { return s.BogusFeedback }),
	counter("", "plenum_bridge_paced", "RTP packets that waited for their turn.", func(_ *metrics, s *snapshot) uint64 { return s.Paced }),
	counter("", "plenum_bridge_probing_bytes", "Bytes sent to find out what paths carry.", func(_ *metrics, s *snapshot) uint64 { return s.Probing }),
	counter("total_bytes_received", "jitsi_jvb_bytes_received", "Bytes received in RTP packets.", func(_ *metrics, s *snapshot) uint64 { return s.BytesIn }),
	counter("total_bytes_sent", "jitsi_jvb_bytes_sent", "Bytes sent in RTP packets.", func(_ *metrics, s *snapshot) uint64 { return s.BytesOut }),
	counter("total_packets_received", "jitsi_jvb_packets_received", "RTP packets received.", func(_ *metrics, s *snapshot) uint64 { return s.PacketsIn }),
	counter("total_packets_sent", "jitsi_jvb_packets_sent", "RTP packets sent.", func(_ *metrics, s *snapshot) uint64 { return s.PacketsOut }),

	counter("total_conferences_created", "jitsi_jvb_conferences_created", "Conferences created.", func(m *metrics, _ *snapshot) int64 { return m.conferencesCreated.Load() }),
	counter("total_conferences_completed", "jitsi_jvb_conferences_completed", "Conferences ended.", func(m *metrics, _ *snapshot) int64 { return m.conferencesCompleted.Load() }),
	counter("total_conference_seconds", "jitsi_jvb_conference_seconds", "Duration of all ended conferences.", func(m *metrics, _ *snapshot) int64 { return m.conferenceSeconds.Load() }),
	counter("total_participants", "jitsi_jvb_endpoints", "Endpoints created.", func(m *metrics, _ *snapshot) int64 { return m.endpoints.Load() }),
	counter("total_visitors", "jitsi_jvb_visitors", "Visitor endpoints created.", func(m *metrics, _ *snapshot) int64 { return m.visitors.Load() }),
	counter("total_ice_succeeded", "jitsi_jvb_ice_succeeded", "Endpoints whose connection was established.", func(m *metrics, _ *snapshot) int64 { return m.iceSucceeded.Load() }),
	counter("total_ice_failed", "jitsi_jvb_ice_failed", "Endpoints whose connection was never established.", func(m *metrics, _ *snapshot) int64 { return m.iceFailed.Load() }),
	counter("ice_restarts_started", "jitsi_jvb_ice_restarts_started", "ICE restarts begun.", func(m *metrics, _ *snapshot) int64 { return m.iceRestarts.Load() }),
	counter("ice_restarts_not_established", "jitsi_jvb_ice_restarts_not_established", "ICE restarts asked for before there was a connection.", func(m *metrics, _ *snapshot) int64 { return m.iceRestartsEarly.Load() }),
	counter("endpoints_ice_failed", "jitsi_jvb_endpoints_ice_failed", "Endpoints for which ICE failed.", func(m *metrics, _ *snapshot) int64 { return m.iceFailed.Load() }),
	counter("dtls_failed_endpoints", "jitsi_jvb_endpoints_dtls_failed", "Endpoints with ICE, but without DTLS.", func(m *metrics, _ *snapshot) int64 { return m.dtlsFailed.Load() }),
	counter("endpoints_disconnected", "jitsi_jvb_endpoints_disconnected", "Endpoints that fell silent.", func(m *metrics, _ *snapshot) int64 { return m.disconnected.Load() }),
	counter("endpoints_reconnected", "jitsi_jvb_endpoints_reconnected", "Endpoints that came back.", func(m *metrics, _ *snapshot) int64 { return m.reconnected.Load() }),
	counter("total_dominant_speaker_changes", "jitsi_jvb_dominant_speaker_changes", "Changes of the dominant speaker.", func(_ *metrics, s *snapshot) uint64 { return s.SpeakerChanges }),
	counter("total_data_channel_messages_received", "jitsi_jvb_data_channel_messages_received", "Messages from data channels.", func(m *metrics, _ *snapshot) int64 { return m.dataReceived.Load() }),
	counter("total_data_channel_messages_sent", "jitsi_jvb_data_channel_messages_sent", "Messages to data channels.", func(m *metrics, _ *snapshot) int64 { return m.dataSent.Load() }),
	counter("total_colibri_web_socket_messages_received", "jitsi_jvb_colibri_web_socket_messages_received", "Messages from colibri WebSockets.", func(m *metrics, _ *snapshot) int64 { return m.socketReceived.Load() }),
	counter("total_colibri_web_socket_messages_sent", "jitsi_jvb_colibri_web_socket_messages_sent", "Messages to colibri WebSockets.", func(m *metrics, _ *snapshot) int64 { return m.socketSent.Load() }),
	counter("", "jitsi_jvb_colibri_web_socket_close_normal", "Colibri WebSockets that were closed.", func(m *metrics, _ *snapshot) int64 { return m.socketClosed.Load() }),
	counter("", "jitsi_jvb_colibri_web_socket_close_abnormal", "Colibri WebSockets that broke.", func(m *metrics, _ *snapshot) int64 { return m.socketBroken.Load() }),
	counter("", "jitsi_jvb_endpoint_receive_message_queue_dropped_packets", "Messages of clients dropped because too many waited.", func(m *metrics, _ *snapshot) int64 { return m.inboundDropped.Load() }),
	counter("", "jitsi_jvb_colibri_queue_exceptions", "Requests that ended in an internal error.", func(m *metrics, _ *snapshot) int64 { return m.panics.Load() }),
	counter("", "jitsi_jvb_xmpp_disconnects", "Lost XMPP streams.", func(m *metrics, _ *snapshot) int64 { return m.xmppDisconnect.Load() }),

	gauge("muc_clients_configured", "jitsi_jvb_muc_clients_configured", "Shards configured.", func(_ *metrics, s *snapshot) int { return s.ShardsConfigured }),
	gauge("muc_clients_connected", "jitsi_jvb_muc_clients_connected", "Shards connected.", func(_ *metrics, s *snapshot) int { return s.ShardsConnected }),
	gauge("mucs_configured", "", "", func(_ *metrics, s *snapshot) int { return s.ShardsConfigured }),
	gauge("mucs_joined", "jitsi_jvb_mucs_joined", "Breweries joined.", func(_ *metrics, s *snapshot) int { return s.Joined }),

	counter("", "plenum_bridge_colibri_requests", "Colibri2 requests.", func(m *metrics, _ *snapshot) int64 { return m.requests.Load() }),
	counter("", "plenum_bridge_colibri_errors", "Colibri2 requests that were refused.", func(m *metrics, _ *snapshot) int64 { return m.requestErrors.Load() }),
	counter("", "plenum_bridge_colibri_slow", "Colibri2 requests that took longer than 100 ms.", func(m *metrics, _ *snapshot) int64 { return m.requestsSlow.Load() }),
	counter("", "plenum_bridge_channel_outbound_dropped", "Messages to clients dropped because they do not read.", func(m *metrics, _ *snapshot) int64 { return m.outboundDropped.Load() }),
	counter("", "plenum_bridge_channel_malformed", "Messages of clients that could not be read.", func(m *metrics, _ *snapshot) int64 { return m.malformedMessages.Load() }),
	counter("", "plenum_bridge_rtp_unsignalled", "RTP packets of no known source.", func(_ *metrics, s *snapshot) uint64 { return s.Unsignalled }),
	counter("", "plenum_bridge_rtp_malformed", "RTP and RTCP packets that could not be read.", func(_ *metrics, s *snapshot) uint64 { return s.Malformed }),
	counter("", "plenum_bridge_rtp_duplicates", "RTP packets that had come already.", func(_ *metrics, s *snapshot) uint64 { return s.Duplicates }),
	counter("", "plenum_bridge_rtp_silence", "Audio packets dropped as silence.", func(_ *metrics, s *snapshot) uint64 { return s.Silence }),
	counter("", "plenum_bridge_rtp_lost", "Packets of clients that did not arrive.", func(_ *metrics, s *snapshot) uint64 { return s.LostIn }),
	counter("", "plenum_bridge_retransmitted", "Packets sent again on request.", func(_ *metrics, s *snapshot) uint64 { return s.Retransmitted }),
	counter("", "plenum_bridge_retransmit_missed", "Requested packets that were gone.", func(_ *metrics, s *snapshot) uint64 { return s.RetransmitMissed }),
	counter("", "plenum_bridge_nacks_received", "Sequence numbers that clients asked for again.", func(_ *metrics, s *snapshot) uint64 { return s.NACKsIn }),
	counter("", "plenum_bridge_nacks_sent", "Sequence numbers that clients were asked for again.", func(_ *metrics, s *snapshot) uint64 { return s.NACKsOut }),
	counter("", "plenum_bridge_plis_received", "Key frames that clients asked for.", func(_ *metrics, s *snapshot) uint64 { return s.PLIsIn }),
	counter("", "plenum_bridge_plis_sent", "Key frames that clients were asked for.", func(_ *metrics, s *snapshot) uint64 { return s.PLIsOut }),

	counter("", "plenum_bridge_udp_received", "Datagrams read.", sum(func(c *coreCounters) uint64 { return c.Received })),
	counter("", "plenum_bridge_udp_batches", "Reads that brought them.", sum(func(c *coreCounters) uint64 { return c.Batches })),
	counter("", "plenum_bridge_udp_kernel_drops", "Datagrams that the kernel dropped because the receive buffer was full.", func(_ *metrics, s *snapshot) uint64 { return s.Media.SocketDrops }),
	counter("", "plenum_bridge_udp_unrouted", "Datagrams from unknown addresses.", sum(func(c *coreCounters) uint64 { return c.Unrouted + c.UnknownSTUN })),
	counter("", "plenum_bridge_udp_limited", "STUN beyond the rate for new addresses.", sum(func(c *coreCounters) uint64 { return c.Limited })),
	counter("", "plenum_bridge_udp_handed_over", "Datagrams that another core had to handle.", sum(func(c *coreCounters) uint64 { return c.HandedOver })),
	counter("", "plenum_bridge_udp_ring_full", "Datagrams dropped on the way to another core.", sum(func(c *coreCounters) uint64 { return c.RingFull })),
	counter("", "plenum_bridge_core_panics", "Conferences that crashed and were ended.", sum(func(c *coreCounters) uint64 { return c.Panics })),
	gauge("", "plenum_bridge_paths", "Addresses that are routed to an endpoint.", func(_ *metrics, s *snapshot) int { return s.Media.Paths }),
	gauge("", "plenum_bridge_peers", "Transports, of endpoints and those that end.", func(_ *metrics, s *snapshot) int { return s.Media.Peers }),
	gauge("", "plenum_bridge_udp_receive_buffer_bytes", "Receive buffer granted to a media socket.", func(_ *metrics, s *snapshot) int { return s.Media.ReceiveBuffer }),
}

func truth(v bool) int {
	if v {
		return 1
	}
	return 0
}

// sum adds up one counter over the cores.
func sum(f func(c *coreCounters) uint64) func(*metrics, *snapshot) uint64 {
	return func(_ *metrics, s *snapshot) (n uint64) {
		for i := range s.Media.Cores {
			n += f(&s.Media.Cores[i])
		}
		return n
	}
}

// descs of published, by index; nil where there is no name.
var descs = func() []*prometheus.Desc {
	d := make([]*prometheus.Desc, len(published))
	for i, p := range published {
		name := p.name
		if name == "" {
			continue
		}
		if p.counter {
			name += "_total"
		}
		d[i] = prometheus.NewDesc(name, p.help, nil, nil)
	}
	return d
}()

var bySize = prometheus.NewDesc("jitsi_jvb_conferences_by_size", "Histogram of conferences by total number of endpoints.", nil, nil)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		if d != nil {
			ch <- d
		}
	}
	ch <- bySize
	m.delay.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.delay.Collect(ch)
	s := m.last()
	for i, p := range published {
		if descs[i] == nil {
			continue
		}
		kind := prometheus.GaugeValue
		if p.counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(descs[i], kind, p.value(m, s))
	}
	if s.Sizes != nil {
		ch <- prometheus.MustNewConstHistogram(bySize, uint64(s.Conferences), float64(s.LocalEndpoints), s.Sizes)
	}
}

// A stat is one statistic as told to focuses and tools: a number, a string or a boolean.
type stat struct {
	name  string
	value any
}

func number(name string, v float64) stat {
	if decimal[name] {
		return stat{name, v}
	}
	return stat{name, int64(v)}
}

// stats are presence and /colibri/stats. In JSON they are one object in this order.
type stats []stat

func (m *metrics) stats() stats {
	s := m.last()
	drain, graceful, shutting := m.b.state.get()
	out := make(stats, 0, len(published)+len(unmeasured)+12)
	for _, p := range published {
		if p.stat == "" {
			continue
		}
		v := p.value(m, s)
		out = append(out, number(p.stat, v))
	}
	for _, name := range unmeasured {
		out = append(out, number(name, 0))
	}
	out = append(out,
		stat{"graceful_shutdown", graceful}, stat{"shutting_down", shutting},
		stat{"drain", drain}, // a focus that does not see it avoids the bridge
		stat{"healthy", m.health() == nil},
		stat{"current_timestamp", m.b.cfg.Now().UTC().Format("2006-01-02 15:04:05.000")},
		stat{"relay_id", m.b.cfg.RelayID},
		stat{"version", m.b.cfg.Version})
	if r := m.b.cfg.Region; r != "" {
		out = append(out, stat{"region", r})
	}
	if f := families(m.b.media.localCandidates()); f != "" {
		out = append(out, stat{"address_families", f}) // ours; others skip it
	}
	return out
}

// MarshalJSON writes one object.
func (s stats) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, x := range s {
		v, err := json.Marshal(x.value)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(x.name))
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}
