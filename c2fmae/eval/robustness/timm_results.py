"""Published accuracies of timm's models on ImageNet's validation set, ImageNet-R, ImageNet-Sketch and ImageNetV2.

Source: results/results-{imagenet,imagenet-r-clean,imagenet-r,sketch,imagenetv2-matched-frequency}.csv of
huggingface/pytorch-image-models (licence: Apache-2.0) at commit aa4b585 of 8 August 2026.

Selection: of the 818 models whose tag is that of a training on ImageNet-1k alone, without distillation,
self-supervision or adversarial images, every eighth by validation accuracy.
"""

from typing import NamedTuple


class PublishedAccuracies(NamedTuple):
    """Top-1 accuracies of a model, in percent."""

    model: str
    clean: float
    """On the 50,000 validation images, among 1,000 classes."""
    clean_imagenet_r: float
    """On the validation images of ImageNet-R's 200 classes, among these."""
    imagenet_r: float
    """Among the set's 200 classes."""
    sketch: float
    """Among 1,000 classes."""
    imagenet_v2: float
    """On the images of matched frequency, among 1,000 classes."""


def list_published_accuracies() -> list[PublishedAccuracies]:
    """Return the accuracies of all models of the table, the lowest on the validation set first."""
    rows = (line.split() for line in _TABLE.splitlines())
    return [PublishedAccuracies(model, *map(float, numbers)) for model, *numbers in rows]


_TABLE = """\
test_vit.r160_in1k 40.982 63.980 13.413 4.862 31.620
test_nfnet.r160_in1k 47.634 70.180 17.597 8.589 36.860
lcnet_050.ra2_in1k 63.138 83.130 26.223 14.239 50.050
dla46x_c.in1k 66.008 85.480 26.403 14.402 53.120
efficientvit_m1.r224_in1k 68.340 87.190 31.260 19.975 55.570
xcit_nano_12_p16_224.fb_in1k 69.982 88.900 33.037 21.449 58.410
resnet18.gluon_in1k 70.844 88.690 32.423 21.559 58.330
vgg16.tv_in1k 71.594 89.400 27.960 17.534 58.640
resnet18d.ra2_in1k 72.296 90.020 34.240 23.025 59.910
pit_ti_224.in1k 72.926 90.440 34.630 21.852 60.940
efficientvit_m3.r224_in1k 73.394 90.050 36.137 23.400 61.050
regnetx_006.pycls_in1k 73.904 90.770 33.277 21.759 61.210
efficientvit_m4.r224_in1k 74.344 90.750 36.560 24.272 61.930
dla34.in1k 74.632 91.260 35.647 23.687 62.610
tinynet_b.in1k 74.946 91.120 35.013 23.036 62.710
repvgg_b0.rvgg_in1k 75.158 91.710 36.323 23.339 62.570
semnasnet_100.rmsp_in1k 75.452 91.660 33.557 21.956 63.230
mobilenetv3_rw.rmsp_in1k 75.616 91.560 35.640 22.636 63.320
fasternet_t1.in1k 75.922 91.620 37.003 24.567 62.860
resnet34.a1_in1k 76.420 91.930 38.323 28.104 65.040
tf_efficientnet_lite1.in1k 76.674 92.300 36.687 25.526 64.580
tf_efficientnetv2_b0.in1k 76.876 92.260 39.800 28.568 64.630
cs3darknet_m.c2ns_in1k 76.974 92.720 36.443 24.622 65.670
selecsls42b.in1k 77.184 92.480 35.837 23.386 65.580
starnet_s3.in1k 77.378 93.140 39.080 25.642 65.830
resnet34.ra4_e3600_r224_in1k 77.492 92.700 40.537 30.126 65.770
repvgg_b1g4.rvgg_in1k 77.608 93.050 39.043 26.579 65.800
hardcorenas_e.miil_green_in1k 77.788 92.950 38.147 25.670 66.040
regnety_016.pycls_in1k 77.880 93.060 37.127 24.805 65.940
poolformerv2_s12.sail_in1k 78.008 92.910 40.147 28.543 65.950
tf_efficientnet_em.in1k 78.128 93.200 36.477 23.392 66.060
dla60x.in1k 78.234 93.220 38.613 26.634 67.060
repvgg_b1.rvgg_in1k 78.370 93.410 40.693 27.652 66.820
wide_resnet50_2.tv_in1k 78.486 93.470 38.667 25.340 66.380
fbnetv3_d.ra2_in1k 78.658 93.230 42.890 29.763 67.090
vit_base_patch32_384.augreg_in1k 78.750 93.180 40.707 29.661 66.410
vit_small_patch16_224.augreg_in1k 78.842 93.460 37.123 25.953 66.590
res2net50_26w_8s.in1k 78.950 93.420 39.767 27.314 67.380
resnet50d.gluon_in1k 79.080 93.570 41.040 28.234 67.950
tf_efficientnetv2_b2.in1k 79.208 93.610 39.187 27.177 67.910
resnet50.a1h_in1k 79.264 93.390 41.210 30.535 67.250
hrnet_w48.ms_in1k 79.328 94.040 40.163 28.415 67.800
regnetx_016.tv2_in1k 79.440 94.030 38.623 25.894 67.930
eca_halonext26ts.c1_in1k 79.518 93.560 37.117 25.546 67.640
tf_efficientnet_b2.in1k 79.612 93.740 39.630 26.471 67.180
efficientvit_b1.r256_in1k 79.734 93.700 42.540 29.661 68.360
tf_efficientnet_lite3.in1k 79.808 94.160 40.640 28.765 67.930
fastvit_s12.apple_in1k 79.882 93.660 39.917 28.151 68.260
xception71.tf_in1k 79.920 93.920 41.327 29.055 69.350
cspdarknet53.ra_in1k 80.078 94.140 43.353 31.007 68.860
skresnext50_32x4d.ra_in1k 80.168 93.980 40.687 28.835 68.470
seresnet50.ra2_in1k 80.260 94.120 41.603 29.158 68.830
poolformer_s24.sail_in1k 80.294 94.430 41.763 29.209 68.800
efficientnet_b1.ra4_e3600_r240_in1k 80.404 94.220 43.040 31.618 69.510
resnet152d.gluon_in1k 80.476 94.450 45.443 32.764 69.810
gcresnext50ts.ch_in1k 80.608 94.420 41.320 29.446 69.470
resnet50d.a1_in1k 80.730 93.940 38.417 27.768 68.910
fastvit_sa12.apple_in1k 80.846 94.460 42.920 29.680 69.670
regnetx_032.tv2_in1k 80.916 94.560 40.803 28.981 69.440
crossvit_small_240.in1k 81.036 94.590 43.530 31.274 70.660
vit_small_patch16_384.augreg_in1k 81.130 94.650 39.530 27.348 69.190
fbnetv3_g.ra2_in1k 81.246 94.600 46.377 32.628 70.330
fasternet_s.in1k 81.328 94.590 46.563 33.178 70.010
hgnet_small.paddle_in1k 81.426 94.860 42.287 30.661 70.420
mobilenetv4_hybrid_medium.ix_e550_r256_in1k 81.478 94.820 44.450 31.958 70.570
lamhalobotnet50ts_256.a1h_in1k 81.552 94.750 40.670 29.737 70.790
resnet152.a2_in1k 81.764 94.750 40.810 29.810 70.760
xcit_tiny_24_p8_224.fb_in1k 81.888 94.870 43.233 32.245 71.330
deit_base_patch16_224.fb_in1k 81.980 95.040 44.913 32.390 70.970
coatnet_rmlp_nano_rw_224.sw_in1k 82.064 95.060 43.353 31.553 70.870
regnetz_c16.ra3_in1k 82.162 95.160 45.933 33.394 71.250
vit_base_patch16_rpn_224.sw_in1k 82.218 94.830 47.027 34.727 70.830
vit_relpos_medium_patch16_rpn_224.sw_in1k 82.314 95.090 45.720 33.096 71.050
regnetv_040.ra3_in1k 82.440 95.350 43.750 31.213 71.930
inception_next_tiny.sail_in1k 82.508 95.120 47.037 33.593 71.890
poolformerv2_m48.sail_in1k 82.612 95.200 47.297 34.502 71.440
twins_pcpvt_base.in1k 82.724 95.490 45.900 33.066 72.250
swinv2_tiny_window16_256.ms_in1k 82.828 95.370 44.503 31.299 71.910
maxvit_nano_rw_256.sw_in1k 82.934 95.480 43.527 32.374 72.160
maxxvit_rmlp_nano_rw_256.sw_in1k 83.036 95.360 44.957 33.084 72.330
twins_svt_base.in1k 83.122 95.560 45.887 32.840 72.720
regnety_080.ra3_in1k 83.166 95.570 45.933 33.483 72.980
tiny_vit_21m_224.in1k 83.268 95.690 49.247 37.120 73.250
focalnet_small_srf.ms_in1k 83.428 95.630 47.517 34.673 73.270
swinv2_cr_small_ns_224.sw_in1k 83.490 95.720 46.027 33.842 72.770
repvgg_d2se.rvgg_in1k 83.550 95.920 47.740 34.925 73.850
regnetz_040.ra3_in1k 83.644 95.760 49.180 36.059 73.700
seresnext101d_32x8d.ah_in1k 83.702 96.100 48.513 36.697 73.180
swin_s3_small_224.ms_in1k 83.778 95.850 46.383 33.689 73.030
convnext_base.fb_in1k 83.838 95.940 51.030 37.313 73.780
seresnextaa101d_32x8d.ah_in1k 83.900 96.000 49.763 36.548 73.570
inception_next_base.sail_in1k 84.098 95.910 52.293 39.272 74.000
efficientnet_x_b5.sw_r448_e450_in1k 84.202 96.020 51.430 37.943 73.940
vit_mediumd_patch16_rope_reg1_gap_256.sbb_in1k 84.316 96.130 52.330 39.798 74.550
tf_efficientnet_b7.aa_in1k 84.424 96.070 45.460 32.068 73.880
maxvit_rmlp_small_rw_224.sw_in1k 84.488 95.970 51.290 40.115 74.470
flexivit_base.1200ep_in1k 84.678 96.130 50.730 35.519 74.160
maxvit_large_tf_224.in1k 84.938 96.350 53.010 42.430 74.670
caformer_m36.sail_in1k 85.242 96.410 51.673 39.618 75.570
dm_nfnet_f4.dm_in1k 85.514 96.740 52.397 39.922 75.300
deit3_large_patch16_384.fb_in1k 85.820 96.870 58.323 44.181 76.730
efficientvit_l3.r320_in1k 86.230 96.750 57.597 42.956 77.270
volo_d5_448.sail_in1k 86.974 97.240 58.693 44.100 77.910
"""
