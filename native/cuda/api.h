/* The C boundary of longsight-cuda.so, the CUDA engine.
 *
 * Plain structs and opaque handles, no exceptions and no types of a library: the addon and the
 * engine carry standard libraries of their own. The addon opens the file with dlopen and asks
 * longsightCudaApi() for the table of functions; nothing else is exported. Opening needs neither
 * driver nor GPU: devices() then says what is missing.
 *
 * Everywhere: sizes in bytes where the name says so, 64 bits for everything that can grow with the
 * context. Pointers are to host memory and only need to live during the call. Matrices are row by
 * row. A function that can fail returns its status and, where it is not LS_OK, fills `error`, which
 * may be null. Handles may be used from any thread, but not from two at once: that goes for a model
 * together with all of its sessions. Sessions must be destroyed before their model.
 */
#ifndef LONGSIGHT_CUDA_API_H
#define LONGSIGHT_CUDA_API_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts every change of this file; addon and engine must agree. */
#define LS_CUDA_API_VERSION 1

typedef enum LsStatus {
  LS_OK = 0,
  /* No libcuda.so.1, or it does not start. */
  LS_NO_DRIVER = 1,
  /* A driver before 580, which CUDA 13.0 needs. */
  LS_DRIVER_TOO_OLD = 2,
  /* A driver, but no GPU that this process may use. */
  LS_NO_DEVICE = 3,
  /* A GPU below compute capability 8.0. */
  LS_DEVICE_TOO_OLD = 4,
  /* A shape or weight type that the kernels do not have. The CPU may run the model. */
  LS_UNSUPPORTED = 5,
  /* The caller's mistake; nothing was changed. */
  LS_INVALID_ARGUMENT = 6,
  /* LsError::largestContextRows says what would fit. Nothing was kept of what the call took. */
  LS_OUT_OF_MEMORY = 7,
  /* `proceed` said stop. */
  LS_CANCELLED = 8,
  /* The device no longer answers, or an earlier error left it in no state to go on: every further
   * call for a model on it gives this. Destroying still works; only a new process helps. */
  LS_DEVICE_LOST = 9,
  /* Any other error of the CUDA runtime; the message has its name. */
  LS_CUDA_ERROR = 10
} LsStatus;

typedef struct LsError {
  LsStatus status;
  /* LS_OUT_OF_MEMORY: rows of a cache that fits, 0 = none does; else 0. */
  int64_t largestContextRows;
  /* One sentence with the values, UTF-8, terminated. */
  char message[512];
  /* What to do about it, one sentence; may be empty. */
  char remedy[256];
} LsError;

/* Both the way to progress and to a cancel: called on the calling thread at least every 20 ms while
 * the call waits for the device, with the share of the work that is done, 0 to 1, which never
 * falls. Returning 0 stops the call within 250 ms, with LS_CANCELLED. */
typedef int32_t (*LsProceed)(void* context, double shareDone);

/* ---- devices ------------------------------------------------------------------------------- */

typedef struct LsDevice {
  char name[128];
  /* As CUDA counts; what LsModelDesc::device takes. */
  int32_t ordinal;
  /* 10 * major + minor: 90 for an H100. */
  int32_t computeCapability;
  /* E.g. 13000: the CUDA version of the driver, 1000 * major + 10 * minor. */
  int32_t driverVersion;
  uint64_t totalBytes;
  uint64_t freeBytes;
  /* LS_OK, or why a model cannot run here (LS_DEVICE_TOO_OLD, LS_CUDA_ERROR). */
  LsStatus status;
} LsDevice;

/* ---- model --------------------------------------------------------------------------------- */

typedef enum LsTensorRole {
  /* [vocabulary][embedding]. Also the output head where there is no LS_OUTPUT. */
  LS_TOKEN_EMBEDDING = 0,
  /* [vocabulary][embedding]; optional. */
  LS_OUTPUT = 1,
  /* [1][embedding]. */
  LS_OUTPUT_NORM = 2,
  /* [1][vocabulary]; optional. */
  LS_OUTPUT_BIAS = 3,
  /* [1][length]; `part` is an LsNorm. */
  LS_LAYER_NORM = 4,
  /* [rows][columns], output by input; `part` is an LsMatrix. */
  LS_LAYER_MATRIX = 5,
  /* [1][rows of the matrix]; `part` is an LsMatrix; optional. */
  LS_LAYER_BIAS = 6
} LsTensorRole;

/* In the order of longsight::Matrix. */
typedef enum LsMatrix {
  LS_QUERY = 0,
  LS_KEY = 1,
  LS_VALUE = 2,
  LS_ATTENTION_OUTPUT = 3,
  LS_GATE = 4,
  LS_UP = 5,
  LS_DOWN = 6
} LsMatrix;

/* In the order of longsight::Norm. Query and key norms come both or not at all, of one head each;
 * so do the two norms of what a block adds to the residual stream. */
typedef enum LsNorm {
  LS_NORM_ATTENTION = 0,
  LS_NORM_QUERY = 1,
  LS_NORM_KEY = 2,
  LS_NORM_ATTENTION_OUTPUT = 3,
  LS_NORM_FEED_FORWARD = 4,
  LS_NORM_FEED_FORWARD_OUTPUT = 5
} LsNorm;

typedef struct LsTensorDesc {
  LsTensorRole role;
  /* 0 for those that are not of a layer. */
  int32_t layer;
  /* LsMatrix or LsNorm; else 0. */
  int32_t part;
  /* A ggml_type. Matrices: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_XS;
   * norms and biases: F32. */
  int32_t type;
  int64_t rows;
  int64_t columns;
} LsTensorDesc;

typedef struct LsModelDesc {
  int32_t device;
  int32_t layers;
  int32_t heads;
  int32_t kvHeads;
  int32_t headDim;
  int32_t embedding;
  int32_t feedForward;
  int32_t vocabulary;
  float normEpsilon;
  /* Of the scores; usually 1 / sqrt(headDim). */
  float attentionScale;
  /* All that the model has, in any order; modelUpload() names them by their index here. What is one
   * tensor in the file but several matrices (attn_qkv, ffn_up of a fused gate) comes as several
   * tensors, each with its own rows. */
  const LsTensorDesc* tensors;
  int32_t tensorCount;
} LsModelDesc;

typedef struct LsModel LsModel;

/* ---- session ------------------------------------------------------------------------------- */

typedef enum LsKvType { LS_KV_BF16 = 0, LS_KV_Q8 = 1 } LsKvType;

typedef enum LsRopeStyle {
  /* Turns (2i, 2i + 1). */
  LS_ROPE_INTERLEAVED = 0,
  /* Turns (i, i + rotatedDims / 2). */
  LS_ROPE_NEOX = 1
} LsRopeStyle;

typedef struct LsRope {
  LsRopeStyle style;
  /* The first dimensions of a head, an even number; the others stay as they are. */
  int32_t rotatedDims;
  /* Radians a position, one a pair: [rotatedDims / 2]. All scaling is in them. */
  const double* frequencies;
  /* Rotated dimensions are multiplied by this. */
  double magnitude;
} LsRope;

typedef enum LsPolicy { LS_POLICY_DENSE = 0, LS_POLICY_MASS = 1, LS_POLICY_PEAK = 2 } LsPolicy;

/* What the kernels need of SampleAttentionParams; values as docs/sample-attention.md has them. */
typedef struct LsAttentionParams {
  LsPolicy policy;
  double alpha;
  double epsilon;
  /* Instead of epsilon, [layer][head]; null = epsilon for all. */
  const float* headEpsilons;
  /* Dimensions that stage 1 scores with: two ranges [begin, end), ascending; the second may be
   * empty. */
  int32_t scoreDims[2][2];
  int32_t sinkTokens;
  double maxListShare;
  int32_t auditRows;
} LsAttentionParams;

/* As longsight::Segment. */
typedef struct LsSegment {
  int64_t begin;
  int64_t end;
  int32_t dense;
  /* 0 where dense, as is the window. */
  int32_t stride;
  int64_t windowTokens;
} LsSegment;

typedef struct LsSessionDesc {
  /* Rows of the cache, reserved at once. */
  int64_t capacityRows;
  LsKvType kvType;
  LsRope rope;
  /* Most rows that a forward pass will have at once, for which scratch is reserved; 0 lets the
   * engine choose among 32,768, 16,384 and 8,192 by what fits. LsMemory::chunkRows tells. A pass
   * with more rows takes more scratch, or fails with LS_OUT_OF_MEMORY. */
  int64_t chunkRows;
  /* What passes will be like, for the size of the scratch: the parameters, and the rows of a full
   * segment, its stride and its least window and the window as a share of the position. Others are
   * possible and take more scratch where they need it. segmentRows 0: whole chunks are one segment.
   */
  LsAttentionParams params;
  int64_t segmentRows;
  int32_t sampleStride;
  int64_t windowTokens;
  double windowFraction;
} LsSessionDesc;

typedef struct LsSession LsSession;

/* Device memory. */
typedef struct LsMemory {
  uint64_t weightBytes;
  uint64_t kvBytes;
  /* Activations, attention workspace, expanded weights, output logits. */
  uint64_t scratchBytes;
  /* What kernels and graphs take once they are loaded, besides the CUDA context. */
  uint64_t fixedBytes;
  /* Free on the device at the time of the call. */
  uint64_t freeBytes;
  /* Of the whole device. */
  uint64_t totalBytes;
  /* Of a forward pass, as LsSessionDesc asked for or as chosen. */
  int64_t chunkRows;
  /* Rows of the largest cache that fits beside the weights; 0 = none does. At most 2^30. Only
   * estimateMemory() gives it. */
  int64_t largestContextRows;
  /* Whether what the description asks for is there. Only estimateMemory(). */
  int32_t fits;
} LsMemory;

/* What one (layer, segment, head) kept, over all rows of the segment; all zero where no attention
 * was computed (the last layer of rows whose states nobody wants). */
typedef struct LsHeadStats {
  int64_t keptPairs;
  int64_t causalPairs;
  /* Columns of the list without the sinks; what stage 2 found, also where the head fell back. */
  int32_t listLength;
  /* 1 when the segment is dense or the list was longer than maxListShare allows. */
  int32_t dense;
} LsHeadStats;

typedef struct LsForward {
  /* One a row of the segments. */
  const int32_t* tokens;
  /* Consecutive, without gaps; any number. The first begins at or before the rows the cache holds;
   * rows from there on are replaced. */
  const LsSegment* segments;
  int32_t segmentCount;
  LsAttentionParams params;
  /* First row whose final state is wanted; the end of the last segment = none. The last layer
   * computes keys and values for all rows, the rest for these only. */
  int64_t outputBegin;
  /* Final states after the output norm, f32 [row - outputBegin][embedding]; null where none is
   * wanted. */
  float* states;
  /* [layer][segment][head]; null where not wanted. */
  LsHeadStats* stats;
  /* Exact share of the probability kept, [layer][segment][auditRows][head]; negative where there is
   * no audit row. Null where not wanted: then no audit runs. */
  float* coverage;
  /* Negative, or a density for benchmarks on random weights, which have no structure for stage 1 to
   * find: stages 1 and 2 run and are timed, then their lists are replaced by random ones. Lists of
   * heads are log-normal in length around this density, one head has 0.55. */
  double forcedDensity;
  LsProceed proceed;
  void* context;
} LsForward;

/* Device time in milliseconds since the session was made, by part; the sum is the time in which
 * the device worked for it or waited inside a pass. */
typedef struct LsTimes {
  /* Matrix products of forward passes. */
  double linearMs;
  /* Weights to bf16. */
  double expandMs;
  /* Norms, RoPE, what is written to the cache. */
  double pointwiseMs;
  /* Sampling, lists, attention, audit; attention of dense rows is stage 3. */
  double stage1Ms;
  double stage2Ms;
  double stage3Ms;
  double auditMs;
  /* Everything else of forward passes: embedding rows, copies, the drawing of forced lists. */
  double restMs;
  /* sessionStep() and sessionLogits(). */
  double stepMs;
  double logitsMs;
} LsTimes;

/* Speed of one layer, for predictions: linear work and everything that goes with the row, and dense
 * attention a (row, column, head) pair. */
typedef struct LsSpeed {
  double linearMsPerRow;
  double attentionMsPerPair;
} LsSpeed;

/* Rows that sessionStep() takes at most. */
#define LS_MOST_STEP_ROWS 8

/* ---- the table ----------------------------------------------------------------------------- */

typedef struct LsCudaApi {
  int32_t version;

  /* Lists the GPUs: writes up to `capacity` of them and their number to *count, which may be more.
   * Fails with LS_NO_DRIVER, LS_DRIVER_TOO_OLD, LS_NO_DEVICE, LS_CUDA_ERROR; with
   * LS_DEVICE_TOO_OLD when there are GPUs but none has what it takes, and `out` is filled then,
   * too. Takes some 100 ms and 500 MB a device while it runs, gives them back where no model is. */
  LsStatus (*devices)(LsDevice* out, int32_t capacity, int32_t* count, LsError* error);

  /* What a model with one session takes at its peak, within 3 %, and whether that fits now. A model
   * that is loaded already counts as not loaded; see sessionEstimate(). Fails as modelCreate()
   * does, but not with LS_OUT_OF_MEMORY. */
  LsStatus (*estimateMemory)(const LsModelDesc* model, const LsSessionDesc* session, LsMemory* out,
                             LsError* error);

  /* Checks shapes and types and takes the memory for the weights, whose contents are undefined
   * until modelUpload() or modelFillRandom(). Fails with LS_UNSUPPORTED, LS_INVALID_ARGUMENT,
   * LS_OUT_OF_MEMORY and whatever devices() fails with. */
  LsStatus (*modelCreate)(const LsModelDesc* desc, LsModel** out, LsError* error);

  /* Writes rows [firstRow, firstRow + rows) of a tensor, as they are in the file: `data` has rows
   * times the bytes of a row of the type. Copies through pinned memory and returns when `data` may
   * be reused; the transfer may still be under way. */
  LsStatus (*modelUpload)(LsModel* model, int32_t tensor, int64_t firstRow, int64_t rows,
                          const void* data, LsError* error);

  /* Fills every tensor with small random weights, norms with 1 and biases with 0: the same seed and
   * description give the same bits. */
  LsStatus (*modelFillRandom)(LsModel* model, uint64_t seed, LsError* error);

  uint64_t (*modelWeightBytes)(const LsModel* model);
  /* Null is allowed. */
  void (*modelDestroy)(LsModel* model);

  /* As estimateMemory() for a further session of a loaded model: weightBytes is what the model has,
   * which freeBytes no longer counts. */
  LsStatus (*sessionEstimate)(LsModel* model, const LsSessionDesc* desc, LsMemory* out,
                              LsError* error);

  /* Takes cache and scratch. Fails with LS_INVALID_ARGUMENT, LS_OUT_OF_MEMORY, LS_UNSUPPORTED. */
  LsStatus (*sessionCreate)(LsModel* model, const LsSessionDesc* desc, LsSession** out,
                            LsError* error);
  /* Null is allowed. */
  void (*sessionDestroy)(LsSession* session);

  /* Runs the rows of the segments through all layers. After LS_CANCELLED or an error the rows from
   * the first segment's begin on are undefined and count as not filled; those before stay. */
  LsStatus (*sessionForward)(LsSession* session, const LsForward* forward, LsError* error);

  /* Appends `count` rows, 1 to LS_MOST_STEP_ROWS, at `firstRow`, which is at most the rows that the
   * cache holds; rows from there on are replaced. Dense attention. Logits are f32
   * [count][vocabulary]; row i has seen tokens [0, i]. */
  LsStatus (*sessionStep)(LsSession* session, int64_t firstRow, const int32_t* tokens,
                          int32_t count, float* logits, LsError* error);

  /* Logits f32 [rows][vocabulary] of final states f32 [rows][embedding]. `proceed` may be null. */
  LsStatus (*sessionLogits)(LsSession* session, const float* states, int64_t rows, float* logits,
                            LsProceed proceed, void* context, LsError* error);

  /* Rows that the cache holds. */
  int64_t (*sessionRows)(const LsSession* session);
  /* Forgets rows from `rows` on; more than the cache holds changes nothing. */
  void (*sessionTruncate)(LsSession* session, int64_t rows);

  /* The cache as planes of rows: writes the bytes of a row of each of the first `capacity` planes
   * and returns their number. Order: keys by (layer, KV head), values the same; with q8 these are
   * integers, and their scales follow, keys and then values. */
  int32_t (*sessionPlanes)(const LsSession* session, int64_t* rowBytes, int32_t capacity);
  /* Copies rows [firstRow, firstRow + rows) of a plane, next to each other, to or from `data`. Rows
   * that are read must be filled. */
  LsStatus (*sessionReadRows)(LsSession* session, int32_t plane, int64_t firstRow, int64_t rows,
                              void* data, LsError* error);
  LsStatus (*sessionWriteRows)(LsSession* session, int32_t plane, int64_t firstRow, int64_t rows,
                               const void* data, LsError* error);
  /* After all planes were written: the cache now holds rows [0, rows). */
  LsStatus (*sessionRestored)(LsSession* session, int64_t rows, LsError* error);

  /* Measures a small piece of real work, some 10 ms, in rows that the cache does not hold yet;
   * zeros where there are none left. */
  LsStatus (*sessionProbe)(LsSession* session, LsSpeed* out, LsError* error);

  void (*sessionTimes)(const LsSession* session, LsTimes* out);
  LsStatus (*sessionMemory)(LsSession* session, LsMemory* out, LsError* error);
} LsCudaApi;

/* The one exported function. Null when this file does not speak `version`. */
typedef const LsCudaApi* (*LsCudaApiFunction)(int32_t version);
#define LS_CUDA_API_SYMBOL "longsightCudaApi"

#ifdef __cplusplus
}
#endif

#endif
