// A longsight-cuda.so of another version: it knows none of the versions that it is asked for.
extern "C" __attribute__((visibility("default"))) const void* longsightCudaApi(int) {
  return nullptr;
}
