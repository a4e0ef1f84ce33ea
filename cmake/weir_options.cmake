# Flags shared by every target of the project.
find_program(WEIR_CCACHE ccache)
if(WEIR_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${WEIR_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${WEIR_CCACHE})
endif()

add_library(weir_flags INTERFACE)
target_compile_options(weir_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall$<SEMICOLON>-Wextra$<SEMICOLON>-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # gcc 12 sees overlapping copies inside std::string (GCC bug 105329).
  target_compile_options(weir_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
target_include_directories(weir_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(weir_flags INTERFACE WEIR_VERSION="${PROJECT_VERSION}")

# One release build runs on every x86-64-v2 machine; wider vectors are chosen at run time per kernel.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(weir_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v2>)
endif()
# Without contraction a * b + c rounds the same in every translation unit that spells it the same.
target_compile_options(weir_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)

if(WEIR_SANITIZE)
  target_compile_options(weir_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${WEIR_SANITIZE}$<SEMICOLON>-fno-omit-frame-pointer$<SEMICOLON>-g>)
  target_link_options(weir_flags INTERFACE -fsanitize=${WEIR_SANITIZE})
endif()

if(WEIR_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "WEIR_FUZZ needs clang: -DCMAKE_CXX_COMPILER=clang++ (make fuzz says it)")
  endif()
  # The fuzzer sees which branches an input takes. What this compiler warns of is not its business.
  target_compile_options(weir_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link$<SEMICOLON>-Wno-error>)
endif()

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
